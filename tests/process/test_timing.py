from atonet_jax.process.timing import in_turns


def test_calls_take_turns_until_the_limit():
    made = []
    calls = {name: lambda name=name: made.append(name) for name in 'abc'}
    assert [times.shape for times in in_turns(calls, rounds=2, warmup=1).values()] == 3 * [(2, 2)]
    assert made == 3 * list('abc')
    assert [len(times) for times in in_turns(calls, rounds=9, warmup=0, limit=0).values()] == [1, 1, 1]
    assert [len(times) for times in in_turns(calls, rounds=9, warmup=2, limit=0).values()] == [1, 1, 1]
    assert [len(times) for times in in_turns(calls, rounds=0, warmup=0, limit=60).values()] == [0, 0, 0]
