"""The recipes that the networks were published with, as far as they are known.

    python main.py --config=configs/published.py:enet_camvid --workdir=runs/enet --config.data.root=/path/to/camvid

The name after the colon is one of the functions below; --config=configs/published.py lists them. Each docstring says
where its numbers come from. "Not kept" names the parts of the published recipe that this package does not have. None of
these runs has been repeated here.

These recipes set the data, the optimiser, the schedule, and class weights that were published as numbers. The rest of
the loss (terms, mining, edges, class weights counted in the labels) is the network's own under any config file. A run
that starts from weights needs their file: --config.init_from or --config.model.pretrained_backbone.
"""

from ml_collections import ConfigDict

from atonet_jax.config import default_config
from atonet_jax.errors import InputError

CITYSCAPES_IMAGES, CAMVID_FRAMES = 2975, 367
# In the order of the train ids. HRNet's, taken over by PIDNet and DDRNet:
HRNET_WEIGHTS = (
    0.8373, 0.918, 0.866, 1.0345, 1.0166, 0.9969, 0.9754, 1.0489, 0.8786, 1.0023, 0.9539, 0.9843, 1.1116, 0.9037,
    1.0865, 1.0955, 1.0865, 1.1529, 1.0507,
)  # fmt: skip
# Of ERFNet's encoder, and of the whole network:
ERFNET_STEP_1 = (
    2.3654, 4.4238, 2.9691, 5.3442, 5.2984, 5.2275, 5.4394, 5.3660, 3.4170, 5.2415, 4.7376, 5.2286, 5.4551, 4.3019,
    5.4264, 5.4332, 5.4338, 5.4631, 5.3947,
)  # fmt: skip
ERFNET_STEP_2 = (
    2.8149, 6.9850, 3.7890, 9.9428, 9.7702, 9.5111, 10.3114, 10.0265, 4.6323, 9.5608, 7.8698, 9.5169, 10.3737, 6.6616,
    10.2605, 10.2879, 10.2898, 10.4054, 10.1381,
)  # fmt: skip
# Of the classes of CamVid, by SegNet's authors:
SEGNET_WEIGHTS = (
    0.2595, 0.1826, 4.5640, 0.1417, 0.9051, 0.3826, 9.6446, 1.8418, 0.6823, 6.2478, 7.3614,
)  # fmt: skip


def get_config(recipe: str = '') -> ConfigDict:
    """The config of one of `RECIPES`.

    Raises:
        InputError: no such recipe.
    """
    if recipe not in RECIPES:
        asked = f'no recipe {recipe!r}; ' if recipe else ''
        raise InputError(f'--config=configs/published.py:RECIPE: {asked}there is {", ".join(RECIPES)}')
    return RECIPES[recipe]()


def erfnet_encoder_cityscapes() -> ConfigDict:
    """The first step of ERFNet: its encoder, on labels of an eighth.

    Known, from the authors' PyTorch code: Adam 5e-4 with betas 0.9 and 0.999, decay 1e-4, poly 0.9 an epoch over 150
    epochs, 6 images of 512x1024, mirror images, class weights. Not kept: shifts by up to 2 pixels.
    The better published result starts from an ImageNet encoder: --config.model.pretrained_backbone.
    """
    config = _half_cityscapes('erfnet_encoder')
    config.loss.class_weights = ERFNET_STEP_1
    _adam(config, 5e-4, decay=1e-4)
    config.schedule.update(name='poly', per='epoch', floor=0.0)
    config.train.update(batch_size=6, epochs=150.0)
    return config


def erfnet_cityscapes() -> ConfigDict:
    """The second step of ERFNet: the whole network, from the first step's encoder.

    The same recipe once more, with other class weights. Give the file that the first step's run exports:
    --config.model.pretrained_backbone=encoder.pth. Published with that code: 72.1 % on val, 69.8 % on the test server.
    The 68.0 % of the paper, and its 69.7 % from an ImageNet encoder, are of older code with another recipe.
    """
    config = _of_network('erfnet', erfnet_encoder_cityscapes())
    config.loss.class_weights = ERFNET_STEP_2
    return config


def enet_cityscapes() -> ConfigDict:
    """ENet on Cityscapes: 58.3 % on the test server.

    Known, from the authors' code: Adam 5e-4, decay 2e-4, 10 images of 512x1024, no mirror images, up to 300 epochs,
    class weights 1 / ln(1.02 + share). Their schedule multiplies the rate by 1e-7 at epoch 100, by mistake; here it
    stays. Not kept: their first step, which trains the encoder alone with a head of its own.
    """
    config = _half_cityscapes('enet')
    config.data.flip = False
    _adam(config, 5e-4, decay=2e-4)
    config.schedule.name = 'constant'
    config.train.update(batch_size=10, epochs=300.0)
    return config


def atonet_camvid() -> ConfigDict:
    """ATONet: 70.1% on CamVid's test frames of 720x960.

    Known, from the paper: SGD 0.02 with momentum 0.9 and decay 1e-4, a cosine over epochs, 400 epochs of 16 crops of
    720x720, train and val; a backbone from ImageNet (--config.model.pretrained_backbone). Not kept: their code makes
    frames twice as wide as high before it cuts crops.
    """
    config = default_config('atonet')
    _camvid_720(config, crop_size=(720, 720))
    config.train.update(batch_size=16, epochs=400.0)
    return config


def enet_camvid() -> ConfigDict:
    """ENet on CamVid's frames of 360x480: 51.3 % on the test frames.

    Known and not kept: as in `enet_cityscapes`. That the frames are those of the SegNet repack, and that training took
    its 367 frames alone, is what the published figures go with.
    """
    config = _camvid_360('enet')
    config.data.flip = False
    _adam(config, 5e-4, decay=2e-4)
    config.schedule.name = 'constant'
    config.train.update(batch_size=10, epochs=300.0)
    return config


def enet_davidtvs_head_camvid() -> ConfigDict:
    """The PyTorch port of ENet on CamVid. Known, from its code: the rate is divided by 10 every 100 of 300 epochs."""
    config = _of_network('enet_davidtvs_head', enet_camvid())
    config.schedule.update(name='steps', per='epoch', step_epochs=100.0, step_factor=0.1)
    return config


def espnet_c_cityscapes() -> ConfigDict:
    """The first step of ESPNet: its encoder, ESPNet-C, on labels of an eighth.

    Known, from the authors' code: Adam 5e-4 with betas 0.9 and 0.999, decay 5e-4, the rate halved every 100 of 300
    epochs, class weights 1 / ln(1.10 + share), which count void as a class. Not kept: void is ignored here; an epoch
    was five passes over the images, in sizes from 256x512 to 768x1536 (here one size, and five times the epochs); the
    border was cut off at random; images were turned upside down, which was meant to be the mirror image.
    """
    config = _half_cityscapes('espnet_c')
    _adam(config, 5e-4, decay=5e-4)
    config.schedule.update(name='steps', per='epoch', step_epochs=500.0, step_factor=0.5)
    config.train.update(batch_size=14, epochs=1500.0)
    return config


def espnet_cityscapes() -> ConfigDict:
    """The second step of ESPNet: the whole network, from ESPNet-C's weights.

    The same recipe with 8 images of 512x1024. Give the file that the first step's run exports:
    --config.model.pretrained_backbone=espnet_c.pth. Published: 60.3 % on the test server.
    """
    config = _of_network('espnet', espnet_c_cityscapes())
    config.train.batch_size = 8
    return config


def pidnet_s_cityscapes() -> ConfigDict:
    """PIDNet-S on Cityscapes, from its ImageNet weights: 78.8 % on val.

    Known, from the authors' code: SGD 0.01 with momentum 0.9, decay 5e-4 on everything, poly 0.9 a step over 484
    epochs, 12 crops of 1024x1024, scales 0.5 to 2.1, mirror images, class weights. Not kept: their scales go in steps
    of 0.1; small images are padded with black at the right and the bottom, here with the mean colour at all sides;
    their edges are found before scaling and cropping.
    """
    config = default_config('pidnet_s')
    config.data.update(crop_size=(1024, 1024), scale_range=(0.5, 2.1))
    config.loss.class_weights = HRNET_WEIGHTS
    _sgd(config, 0.01, decay=5e-4)
    config.train.update(batch_size=12, epochs=484.0)
    return config


def pidnet_s_camvid() -> ConfigDict:
    """PIDNet-S on CamVid, from its Cityscapes weights: 80.1 % on the test frames.

    Known: as in `pidnet_s_cityscapes`, with rate 0.005, 12 crops of 720x960 and no class weights; their schedule is of
    200 epochs, and they stopped after 121. Give the weights by --config.init_from and --config.init_strict=false.
    Not kept: of the 32 classes that frames of 720x960 are labelled with they ignore all but eleven; here 31 count.
    """
    config = default_config('pidnet_s')
    config.model.edge_border = 0
    _camvid_720(config, scale_range=(0.5, 2.1))
    _sgd(config, 0.005, decay=5e-4)
    config.train.update(batch_size=12, epochs=200.0)
    return config


def ddrnet_23_slim_cityscapes() -> ConfigDict:
    """DDRNet-23-slim on Cityscapes, from its ImageNet weights: 77.4 % on the test server.

    Known, from the authors' repository: hard example mining, class weights, crops of 1024x1024. There is no training
    code. Recalled from the paper, and not read again: SGD 0.01 with momentum 0.9, decay 5e-4, poly 0.9, 484 epochs,
    12 crops, scales 0.5 to 2, mirror images.
    """
    config = default_config('ddrnet_23_slim')
    config.data.update(crop_size=(1024, 1024), scale_range=(0.5, 2.0))
    config.loss.class_weights = HRNET_WEIGHTS
    _sgd(config, 0.01, decay=5e-4)
    config.train.update(batch_size=12, epochs=484.0)
    return config


def ddrnet_23_slim_camvid() -> ConfigDict:
    """DDRNet-23-slim on CamVid: 74.7 % on the test frames.

    Recalled from the paper, and not read again: rate 0.001, 968 epochs, 12 crops of 720x960, train and val. Taken over
    from Cityscapes, because nothing is known: decay, schedule, scales.
    """
    config = default_config('ddrnet_23_slim')
    _camvid_720(config, scale_range=(0.5, 2.0))
    _sgd(config, 0.001, decay=5e-4)
    config.train.update(batch_size=12, epochs=968.0)
    return config


def bisenet_r18_cityscapes() -> ConfigDict:
    """BiSeNet on an ImageNet ResNet-18: 74.7 % on the test server, with images of 768x1536.

    Known, from the authors' code (the version for speed): SGD with momentum 0.9, rate 0.01 for the context path and
    ten times that for all else, decay 5e-4 on kernels alone, poly 0.9 a step, 16 crops of 768x1536, 80,000 steps,
    scales 0.75 to 2, mirror images. Not kept: their scales are six; each GPU mines its own hard examples; they compare
    at an eighth of the labels' size, and here the logits are enlarged. The paper itself has other rates.
    """
    config = default_config('bisenet_r18')
    config.data.update(crop_size=(768, 1536), scale_range=(0.75, 2.0))
    _sgd(config, 0.1, decay=5e-4)
    config.optimizer.update(backbone_factor=0.1, backbone_factor_on='rate', decayed='kernels')
    config.train.update(batch_size=16, epochs=_epochs(80_000, batch_size=16))
    config.eval.height = 768
    return config


def bisenet_x39_cityscapes() -> ConfigDict:
    """BiSeNet on Xception39: 68.4 % on the test server, with images of 768x1536.

    Known and not kept: as in `bisenet_r18_cityscapes`, with 140,000 steps and scales 0.5 to 1.75. The code starts from
    fresh weights; the paper trained the Xception39 on ImageNet first, and nothing more is known of that.
    """
    config = _of_network('bisenet_x39', bisenet_r18_cityscapes())
    config.data.scale_range = (0.5, 1.75)
    config.train.epochs = _epochs(140_000, batch_size=16)
    return config


def bisenet_r18_camvid() -> ConfigDict:
    """BiSeNet on an ImageNet ResNet-18, on CamVid: 68.7 % on the test frames.

    Recalled from the paper, and not read again: one rate for all, 0.025, decay 1e-4, batches of 16, scales as for
    Cityscapes, frames of 720x960, train and val. Not known: the number of epochs, here those of ATONet.
    """
    config = bisenet_r18_cityscapes()
    _camvid_720(config)
    _sgd(config, 0.025, decay=1e-4)
    config.optimizer.update(backbone_factor=1.0, backbone_factor_on='both')
    config.train.epochs = 400.0
    config.eval.height = 0
    return config


def bisenet_x39_camvid() -> ConfigDict:
    """BiSeNet on Xception39, on CamVid: 65.6 % on the test frames. Known: as in `bisenet_r18_camvid`."""
    config = _of_network('bisenet_x39', bisenet_r18_camvid())
    config.data.scale_range = bisenet_x39_cityscapes().data.scale_range
    return config


def fcn8s_cityscapes() -> ConfigDict:
    """FCN-8s on an ImageNet VGG16, all at once: 65.3 % on the test server at full size, by the data set's authors.

    Known, from the solver files for PASCAL: SGD with momentum 0.99, one image a step, decay 5e-4 except for biases, a
    constant rate that is 1e-10 for a loss summed over the pixels; 2.5e-5 for their mean. Known, from the paper of
    Cityscapes: half images, 381,250 steps in four stages (32s, 16s, 8s, and 8s with a tenth of the rate). Not known:
    the rate there. Not kept: the stages; biases have twice the rate; at once, the authors scale pool4 by 0.01 and pool3
    by 0.0001, and scores start at zero.
    """
    config = default_config('fcn8s')
    config.data.update(crop_size=(1024, 1024), scale_range=(1.0, 1.0), flip=False)
    _sgd(config, 2.5e-5, decay=5e-4)
    config.optimizer.update(momentum=0.99, backbone_factor=1.0, decayed='kernels')
    config.schedule.name = 'constant'
    config.train.update(batch_size=1, epochs=_epochs(381_250, batch_size=1))
    return config


def swiftnet_ss_2020_cityscapes() -> ConfigDict:
    """SwiftNetRN-18 for a single scale on an ImageNet ResNet-18: 75.5 % on the test server.

    Known, from the authors' code of 2020: Adam with betas 0.9 and 0.99, rate 4e-4 and decay 1e-4 for new layers, a
    quarter of both for the encoder, cosine an epoch to 1e-6 over 250 epochs, 14 crops of 768x768, scales 0.5 to 2,
    mirror images. Not kept: they draw the side of the box that becomes the crop, 384 to 1536 pixels, so that half of
    their scales are below 0.8, here a fifth; they scale images bicubically. The form of 2019 has no public recipe.
    """
    config = default_config('swiftnet_ss_2020')
    config.data.update(crop_size=(768, 768), scale_range=(0.5, 2.0))
    _adam(config, 4e-4, decay=1e-4)
    config.optimizer.update(second_beta=0.99, backbone_factor=0.25)
    config.schedule.update(name='cosine', per='epoch', floor=1e-6)
    config.train.update(batch_size=14, epochs=250.0)
    return config


def swiftnet_pyr_2020_cityscapes() -> ConfigDict:
    """SwiftNetRN-18 on a pyramid of images. Known and not kept: as in `swiftnet_ss_2020_cityscapes`."""
    return _of_network('swiftnet_pyr_2020', swiftnet_ss_2020_cityscapes())


def swiftnet_pyr_2020_camvid() -> ConfigDict:
    """SwiftNetRN-18 on a pyramid of images, on CamVid: 73.86 % on the test frames.

    Recalled from the paper, and not read again: 12 crops of 448x448, 400 epochs, train and val. Taken over from
    Cityscapes, because nothing is known: all else.
    """
    config = swiftnet_pyr_2020_cityscapes()
    _camvid_720(config, crop_size=(448, 448))
    config.train.update(batch_size=12, epochs=400.0)
    return config


def swiftnet_ss_2020_camvid() -> ConfigDict:
    """SwiftNetRN-18 for a single scale, on CamVid. Known: as in `swiftnet_pyr_2020_camvid`."""
    return _of_network('swiftnet_ss_2020', swiftnet_pyr_2020_camvid())


def segnet_camvid() -> ConfigDict:
    """SegNet on an ImageNet VGG16, on CamVid's frames of 360x480: 46 % to 50 % on the test frames.

    Known, from the authors' network files: SGD 1e-3 with momentum 0.9, decay 5e-4 except for biases and shifts, a
    constant rate, 4 frames a step, 40,000 steps, no augmentation, class weights. Their loss is a sum over the pixels
    in some versions; here it is a mean, and the rate may want to be larger. The weight of signs, 9.6, does not follow
    from the labels, which give 3.8. Not kept: biases have twice the rate; scales of batch normalisation decay; images
    in Caffe's form, which is --config.model.caffe_images=true. The published 60.1 % took 3,433 images that are not
    public.
    """
    config = _camvid_360('segnet')
    config.data.flip = False
    config.loss.class_weights = SEGNET_WEIGHTS
    _sgd(config, 1e-3, decay=5e-4)
    config.optimizer.decayed = 'kernels'
    config.schedule.name = 'constant'
    config.train.update(batch_size=4, epochs=round(40_000 * 4 / CAMVID_FRAMES, 2))
    return config


def segnet_basic_camvid() -> ConfigDict:
    """SegNet-Basic on CamVid. Known: as in `segnet_camvid`, with rate 0.1 and 10,000 steps from scratch."""
    config = _of_network('segnet_basic', segnet_camvid())
    config.optimizer.learning_rate = 0.1
    config.train.epochs = round(10_000 * 4 / CAMVID_FRAMES, 2)
    return config


def deeplab_largefov_cityscapes() -> ConfigDict:
    """DeepLab-LargeFOV on an ImageNet VGG16, on half-size images: 63.1 % on the test server, with a CRF after it.

    Known, from the paper of Cityscapes: half-size images, 10 a step, 40,000 steps, then as many with val. Known, from
    the authors' network files for PASCAL: SGD 1e-3 with momentum 0.9, ten times that for the last layer, decay 5e-4 of
    kernels alone, the rate divided by 10 after each third of the steps, crops of 321x321, mirror images. Which of these
    they took for Cityscapes is not known. Not kept: the CRF; fc6 and fc7 start from a part of VGG16's weights;
    biases have twice the rate; images in Caffe's form, which is --config.model.caffe_images=true.
    """
    config = _half_cityscapes('deeplab_largefov')
    config.data.crop_size = (321, 321)
    _sgd(config, 1e-2, decay=5e-4)
    config.optimizer.update(backbone_factor=0.1, backbone_factor_on='rate', decayed='kernels')
    epochs = _epochs(40_000, batch_size=10)
    config.schedule.update(name='steps', step_epochs=round(epochs / 3, 2), step_factor=0.1)
    config.train.update(batch_size=10, epochs=epochs)
    return config


def frrn_a_cityscapes() -> ConfigDict:
    """FRRN A on images of 256x512, from scratch: 63.0 % on the test server.

    Known, from the authors' code: Adam 1e-3 with betas 0.9 and 0.999, no decay, the rate divided by 1.25 every 5,000
    steps but not below 5e-5, 3 images a step, 45,000 to 50,000 steps, the 32,768 largest losses of an image. Not kept:
    the rate falls towards 5e-5; shifts by up to 120 pixels are random crops of nearly the whole image; gamma; images
    were reduced bicubically, and of labels the majority taken, here the nearest pixel; an option that draws some images
    more often.
    """
    config = default_config('frrn_a')
    config.data.update(crop_size=(256, 512), scale_range=(0.25, 0.27), flip=False)
    config.data.augmentation.update(rotation=10.0, saturation=0.5, hue=1 / 12)
    _adam(config, 1e-3, decay=0.0)
    config.schedule.update(name='steps', per='step', step_epochs=_epochs(5_000, batch_size=3), floor=5e-5)
    config.schedule.step_factor = 0.8
    config.train.update(batch_size=3, epochs=_epochs(50_000, batch_size=3))
    config.eval.height = 256
    return config


def frrn_b_cityscapes() -> ConfigDict:
    """FRRN B on images of 512x1024, from scratch: 71.8 % on the test server.

    Known and not kept: as in `frrn_a_cityscapes`. It wants --config.train.remat=true: its maps are of full size.
    """
    config = _of_network('frrn_b', frrn_a_cityscapes())
    config.data.update(crop_size=(512, 1024), scale_range=(0.5, 0.54))
    config.eval.height = 512
    return config


def icnet_cityscapes() -> ConfigDict:
    """ICNet, pruned: 67.7 % on val, 69.5 % on the test server.

    The authors published no training code. Recalled from the paper, and not read again: SGD 0.01 with momentum 0.9,
    decay 1e-4, poly 0.9, batch 16, 30,000 steps, scales 0.5 to 2, mirror images. Not known: the crops, here those of a
    PyTorch port (960x960). Not kept: they train PSPNet50 first and prune it in steps; this starts from fresh weights.
    """
    config = default_config('icnet')
    config.data.update(crop_size=(960, 960), scale_range=(0.5, 2.0))
    _sgd(config, 0.01, decay=1e-4)
    config.train.update(batch_size=16, epochs=_epochs(30_000, batch_size=16))
    return config


def dfanet_a_cityscapes() -> ConfigDict:
    """DFANet A: 71.3 % on the test server. No public network of this name is known to reach it.

    The authors published no code. Recalled from the paper, and not read again: SGD 0.2 with momentum 0.9, decay 1e-5,
    poly 0.9, 48 crops of 1024x1024, scales 0.75 to 1.75, mirror images. Not known: the number of epochs, here those of
    PIDNet. Not kept: their backbones were trained on ImageNet first; no such file is public, and this starts fresh.
    """
    config = default_config('dfanet_a')
    config.data.update(crop_size=(1024, 1024), scale_range=(0.75, 1.75))
    _sgd(config, 0.2, decay=1e-5)
    config.train.update(batch_size=48, epochs=484.0)
    return config


def dfanet_b_cityscapes() -> ConfigDict:
    """DFANet B: 67.1 % on the test server. Known: as in `dfanet_a_cityscapes`."""
    return _of_network('dfanet_b', dfanet_a_cityscapes())


def dfanet_a_camvid() -> ConfigDict:
    """DFANet A on CamVid: 64.7 % on the test frames.

    Recalled from the paper, and not read again: as for Cityscapes, on frames of 720x960. Not known: the number of
    epochs, here those of Cityscapes, and whether the backbones were trained on Cityscapes first.
    """
    config = dfanet_a_cityscapes()
    _camvid_720(config)
    return config


def dfanet_b_camvid() -> ConfigDict:
    """DFANet B on CamVid: 59.3 % on the test frames. Known: as in `dfanet_a_camvid`."""
    return _of_network('dfanet_b', dfanet_a_camvid())


def sqnet_zh320_cityscapes() -> ConfigDict:
    """SQNet in the form of a PyTorch port, by that port's recipe: 69.6 % on val. The paper's own recipe is not known.

    Known, from the port's code: SGD 0.01 or Adam, decay 1e-4, cosine with 3 epochs of warm-up over 800, crops of
    1024x1024, hard example mining from 0.7. Taken over from its example for another network: scales 0.5 to 2, mirror
    images, colours. Not known: the batch, here 16, and the optimiser of the published weights.
    """
    config = default_config('sqnet_zh320')
    config.data.update(crop_size=(1024, 1024), scale_range=(0.5, 2.0))
    config.data.augmentation.update(brightness=0.5, contrast=0.5, saturation=0.5)
    _sgd(config, 0.01, decay=1e-4)
    config.schedule.update(name='cosine', warmup_epochs=3.0)
    config.train.update(batch_size=16, epochs=800.0)
    return config


def table3_aggregation_cityscapes() -> ConfigDict:
    """The aggregation of Table 3 on an ImageNet ResNet-18: 68.41 % on the centre crops of val.

    Known, from ATONet's paper: its recipe for Cityscapes with 100 epochs and no auxiliary losses. Not known: whether
    the last convolution was 3x3 or 1x1, which `table3_aggregation_final1x1` has.
    """
    return _table3('table3_aggregation')


def table3_encoder_decoder_cityscapes() -> ConfigDict:
    """The encoder-decoder of Table 3: 67.39 %. Known: as in `table3_aggregation_cityscapes`; the network is rebuilt."""
    return _table3('table3_encoder_decoder')


def table3_multi_pathway_cityscapes() -> ConfigDict:
    """The multi-pathway network of Table 3: 67.82 %. Known: as in `table3_aggregation_cityscapes`; it is rebuilt."""
    return _table3('table3_multi_pathway')


def _half_cityscapes(network: str) -> ConfigDict:
    """Whole images of Cityscapes in half their size, 512x1024, as older networks take them; also in evaluation."""
    config = default_config(network)
    config.data.update(crop_size=(512, 1024), scale_range=(0.5, 0.5))
    config.eval.height = 512
    return config


def _camvid_360(network: str) -> ConfigDict:
    """Whole frames of the SegNet repack of CamVid, 360x480."""
    config = default_config(network)
    config.data.update(name='camvid', root='data/camvid', train_split='train', eval_split='test')
    config.data.update(crop_size=(360, 480), scale_range=(1.0, 1.0))
    config.eval.update(batch_size=4, checkpoint='latest')  # test chooses nothing
    return config


def _camvid_720(config: ConfigDict, **data) -> None:
    """Frames of CamVid as they were taken, 720x960; train and val are trained on."""
    config.data.update(name='camvid', root='data/camvid', train_split='train+val', eval_split='test')
    config.data.update({'crop_size': (720, 960)} | data)
    config.eval.update(batch_size=4, checkpoint='latest')  # test chooses nothing


def _of_network(network: str, recipe: ConfigDict) -> ConfigDict:
    """The same recipe for another network."""
    config = default_config(network)
    for section in ('data', 'loss', 'optimizer', 'schedule', 'train', 'eval'):
        config[section].update(recipe[section])
    return config


def _adam(config: ConfigDict, rate: float, decay: float) -> None:
    config.optimizer.update(name='adam', learning_rate=rate, momentum=0.9, second_beta=0.999, weight_decay=decay)


def _sgd(config: ConfigDict, rate: float, decay: float) -> None:
    """SGD with momentum 0.9, and poly 0.9 a step to 0."""
    config.optimizer.update(name='sgd', learning_rate=rate, momentum=0.9, weight_decay=decay)
    config.schedule.update(name='poly', per='step', power=0.9, floor=0.0)


def _epochs(steps: int, batch_size: int) -> float:
    """So many steps, as epochs of Cityscapes."""
    return round(steps * batch_size / CITYSCAPES_IMAGES, 2)


def _table3(network: str) -> ConfigDict:
    config = default_config(network)
    config.train.epochs = 100.0
    config.eval.center_crop = (1024, 1024)
    return config


RECIPES = {
    recipe.__name__: recipe
    for recipe in (
        atonet_camvid,
        bisenet_r18_camvid,
        bisenet_r18_cityscapes,
        bisenet_x39_camvid,
        bisenet_x39_cityscapes,
        ddrnet_23_slim_camvid,
        ddrnet_23_slim_cityscapes,
        deeplab_largefov_cityscapes,
        dfanet_a_camvid,
        dfanet_a_cityscapes,
        dfanet_b_camvid,
        dfanet_b_cityscapes,
        enet_camvid,
        enet_cityscapes,
        enet_davidtvs_head_camvid,
        erfnet_cityscapes,
        erfnet_encoder_cityscapes,
        espnet_c_cityscapes,
        espnet_cityscapes,
        fcn8s_cityscapes,
        frrn_a_cityscapes,
        frrn_b_cityscapes,
        icnet_cityscapes,
        pidnet_s_camvid,
        pidnet_s_cityscapes,
        segnet_basic_camvid,
        segnet_camvid,
        sqnet_zh320_cityscapes,
        swiftnet_pyr_2020_camvid,
        swiftnet_pyr_2020_cityscapes,
        swiftnet_ss_2020_camvid,
        swiftnet_ss_2020_cityscapes,
        table3_aggregation_cityscapes,
        table3_encoder_decoder_cityscapes,
        table3_multi_pathway_cityscapes,
    )
}
