"""Arrays to arrays: convolution, pooling, resizing, normalisation. Maps are [B, H, W, C].

`ops.plain` defines what GPUs, TPUs and exports run. On CPUs some functions run other programs that give the same values
and gradients faster; `ops.cpu` holds these and the switch that turns them off.
"""

from atonet_jax.ops import canvas, cpu
from atonet_jax.ops.convolution import conv, conv_prepared, conv_transpose, prepare_kernel
from atonet_jax.ops.grid import enlarge_grid, pool_to_grid
from atonet_jax.ops.normalize import batch_normalize, batch_statistics, normalize_by_batch
from atonet_jax.ops.pooling import (
    adaptive_avg_pool,
    adaptive_pool_matrix,
    avg_pool,
    global_avg_pool,
    max_pool,
    max_pool_with_indices,
    max_unpool,
    pooling_for_quantizers,
)
from atonet_jax.ops.resize import (
    align_corners_matrix,
    enlarged_phases,
    half_pixel_matrix,
    half_pixel_taps,
    map_axis,
    phase_factors,
    phase_weights,
    resize,
    resize_align_corners,
    resize_bicubic,
    resize_bilinear,
    resize_nearest,
    take_between,
    with_neighbours,
)

__all__ = [
    'adaptive_avg_pool',
    'adaptive_pool_matrix',
    'align_corners_matrix',
    'avg_pool',
    'batch_normalize',
    'batch_statistics',
    'canvas',
    'conv',
    'conv_prepared',
    'conv_transpose',
    'cpu',
    'enlarge_grid',
    'enlarged_phases',
    'global_avg_pool',
    'half_pixel_matrix',
    'half_pixel_taps',
    'map_axis',
    'max_pool',
    'max_pool_with_indices',
    'max_unpool',
    'normalize_by_batch',
    'phase_factors',
    'phase_weights',
    'pool_to_grid',
    'pooling_for_quantizers',
    'prepare_kernel',
    'resize',
    'resize_align_corners',
    'resize_bicubic',
    'resize_bilinear',
    'resize_nearest',
    'take_between',
    'with_neighbours',
]
