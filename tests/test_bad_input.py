"""Bad input: every argument of every public function refuses it with a helpful error.

Which values are bad, and what is accepted and why, stands in `bad_input`.
"""

import re

import bad_input
import numpy as np
import public
import pytest

import minicnn as mc

CORE = bad_input.names()


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_every_public_name_has_a_valid_call():
    assert set(bad_input.CALLS) == set(public.objects())


def test_every_method_has_a_valid_call_or_is_not_called_by_users():
    internal = re.compile("|".join(bad_input.INTERNAL))
    assert {name for name in bad_input.methods() if not internal.fullmatch(name)} <= set(
        bad_input.METHODS)
    for pattern in bad_input.INTERNAL:
        assert any(re.fullmatch(pattern, name) for name in bad_input.methods()), pattern


@pytest.mark.parametrize("name", [*public.objects(), *bad_input.METHODS])
def test_every_argument_has_bad_values(name):
    for argument in bad_input.arguments(name):
        accepted = bad_input.accepted_whole(name, argument)
        assert accepted or bad_input.kind(name, argument) in bad_input.KINDS, argument


def test_what_is_accepted_exists():
    known = {f"{name}.{argument}" for name in [*public.objects(), *bad_input.METHODS]
             for argument in [*bad_input.arguments(name), ""]}
    known |= {f"*.{key.rpartition('.')[2]}" for key in known}
    assert not [key for key in bad_input.ACCEPTED if not {key, f"{key}."} & known]


@pytest.mark.parametrize("name", CORE)
def test_the_valid_call_is_valid_and_leaves_its_arguments_alone(name):
    bad_input.check_valid(name)


@pytest.mark.parametrize("name", CORE)
def test_bad_input_is_refused(name):
    bad_input.check_refused(name)


@pytest.mark.parametrize("name", CORE)
def test_arrays_may_lie_in_memory_in_any_way(name):
    bad_input.check_layouts(name)


# What signatures do not show ----------------------------------------------------------------------


def test_ops_that_refer_to_each_other_are_an_error():
    first, second = mc.layers.Flatten(name="first"), mc.layers.Flatten(name="second")
    first.other, second.other = second, first
    with pytest.raises(ValueError, match=r"first is a part of itself.*of second; give"):
        _ = first.parameters
    del second.other
    second._other = first
    assert first.parameters == ()


def test_a_layer_function_on_an_array_says_what_to_do():
    with pytest.raises(TypeError, match=r"`inputs` must be a Tensor.*layer = Conv2D"):
        mc.layers.conv2d(np.zeros((1, 8, 8, 1), np.float32), 3, 3)


def test_the_name_of_a_sequential_that_is_not_built_counts():
    x = mc.Graph().placeholder("x", (None, 4), np.float32)
    assert mc.Sequential([mc.layers.Dense(2)], name="a")(x).name == "a/dense"


def test_variables_that_the_loss_does_not_know():
    train_op = mc.optimize_loss(
        bad_input.scalar_loss(), learning_rate=0.1, variables=["dense/kernle"]
    )
    with pytest.raises(ValueError, match=r"must be one of 'dense/kernel', .*dense/kernle"):
        train_op.trained(list(train_op.loss.graph.parameters.values()))


def test_a_rate_in_the_place_of_the_global_step():
    loss = bad_input.scalar_loss()
    for value in (0.1, mc.optimizers.constant(0.1), "SGD", mc.optimizers.SGD(0.1)):
        with pytest.raises(TypeError, match=r"`global_step`, which must be None.*learning_rate=0"):
            mc.optimize_loss(loss, value)
    assert mc.optimize_loss(loss, learning_rate=0.1).rate() == 0.1
    assert mc.optimize_loss(loss, None, 0.1).rate() == 0.1


# What was built for something else: kernels go by addresses, and would leave their arrays


def ones(*shape):
    return np.ones(shape, np.float32)


@pytest.mark.parametrize(("layer", "before", "after"), [
    (mc.layers.MaxPooling2D(2), (8, 8, 2), (512, 512, 2)),
    (mc.layers.Conv2D(2, 3), (8, 8, 2), (512, 512, 2)),
    (mc.layers.Conv2D(2, 3), (8, 8, 2), (8, 8, 900)),
    (mc.layers.Dense(3), (4,), (400_000,)),
    (mc.layers.Dense(3, activation="relu"), (4,), (400_000,)),
])
def test_backward_of_a_layer_that_was_built_again(layer, before, after):
    layer.build((None, *before), 0)
    ctx = mc.Context()
    layer.forward(ones(8, *before), ctx)
    shape = layer.build((None, *after), 0)
    with pytest.raises(ValueError, match="is needed; if a layer was built again, run forward"):
        layer.backward(ones(8, *shape[1:]), ctx)


@pytest.mark.parametrize("fuse", [True, False])
@pytest.mark.parametrize("number", [0, 1])
def test_a_layer_inside_a_model_that_was_built_again(fuse, number):
    model = mc.Sequential(
        [mc.layers.Conv2D(2, 3, activation="relu"), mc.layers.MaxPooling2D(2)], fuse=fuse
    )
    model.build((None, 8, 8, 1), 0)
    model.layers[number].build((None, 600, 600, 1 + number), 0)
    with pytest.raises(ValueError, match=r"is needed|built for inputs of shape"):
        model.forward(ones(2, 8, 8, 1), mc.Context())


@pytest.mark.parametrize("name", ["kernel", "bias"])
@pytest.mark.parametrize(("layer", "shape"), [
    (mc.layers.Dense(300), (4,)), (mc.layers.Conv2D(40, 3), (6, 6, 2)),
])
def test_a_parameter_in_the_place_of_another_has_its_shape_and_type(layer, shape, name):
    layer.build((None, *shape), 0)
    own = getattr(layer, name)
    for value in (own.value[:1], own.value.astype(np.float64)):
        setattr(layer, name, mc.Parameter("own", value.copy()))
        with pytest.raises(ValueError, match=r"is needed; .*do not assign a parameter of another"):
            layer.forward(ones(2, *shape), mc.Context())


class Two(mc.layers.Layer):
    """Two layers without names."""

    def __init__(self):  # does not call that of its base
        self.first, self.second = mc.layers.Dense(3), mc.layers.Dense(3)

    def build(self, input_shape, rng, dtype=np.float32):
        shape = self.first.build(super().build(input_shape, rng, dtype), rng, dtype)
        return self.second.build(shape, rng, dtype)

    def forward(self, x, ctx):
        return self.second.forward(self.first.forward(x, ctx), ctx)


def test_layers_inside_a_layer_keep_parameters_of_their_own():
    graph, two, dense = mc.Graph(), Two(), mc.layers.Dense(3)
    dense(two(graph.placeholder("x", (None, 3), np.float32)))
    assert list(graph.parameters) == [
        "two/dense/kernel", "two/dense/bias", "two/dense_1/kernel", "two/dense_1/bias",
        "dense/kernel", "dense/bias",
    ]
    assert len({*map(id, (*two.parameters, *dense.parameters))}) == 6


def test_parameters_of_one_name(tmp_path):
    two = Two()
    two.build((None, 3), 0)
    with pytest.raises(ValueError, match="two parameters are called 'dense/kernel'; set"):
        mc.save_weights(two, tmp_path / "two.npz")
    two(mc.Graph().placeholder("x", (None, 3), np.float32))  # a graph names them
    assert [parameter.name for parameter in two.parameters] == [
        "two/dense/kernel", "two/dense/bias", "two/dense_1/kernel", "two/dense_1/bias",
    ]
    two.first.name = two.second.name = "same"
    with pytest.raises(ValueError, match="'same/kernel' is the name of a parameter already"):
        two(mc.Graph().placeholder("x", (None, 3), np.float32))


def test_an_initializer_keeps_its_array():
    start = ones(4, 4)
    layers = [mc.layers.Dense(4, kernel_initializer=lambda *_: start) for _ in range(2)]
    mc.Sequential(layers).build((None, 4), 0)
    arrays = [layer.kernel.value for layer in layers]
    assert not any(np.shares_memory(*pair) for pair in [arrays, (start, arrays[0])])


@pytest.mark.parametrize("name", ["a\0b", "a\n", "\ud800", "a" * 201])
def test_names_that_no_file_could_hold(name):
    with pytest.raises(ValueError, match="`name` may be 200 printable characters long, got "):
        mc.layers.Dense(3, name=name)


def test_plans_say_what_they_lack():
    graph, other = mc.Graph(), mc.Graph()
    x = graph.placeholder("x", (None, 3), np.float32)
    y = mc.relu(x)
    with pytest.raises(ValueError, match=r"`fetches` must be of this graph; 'relu' is of another"):
        other.plan([y])
    plan, ctx = graph.plan([y]), mc.Context()
    with pytest.raises(ValueError, match="`feeds` must give the array of the placeholder 'x'"):
        plan.forward({}, ctx)
    plan.forward({x: ones(2, 3)}, ctx)
    with pytest.raises(ValueError, match="`loss` must be one of the fetched tensors, got Tensor"):
        plan.backward(x, ctx)


def test_tensors_of_integers_are_to_be_cast():
    x = mc.Graph().placeholder("x", (None, 3), np.int32)
    for function in (mc.sigmoid, mc.softmax, mc.tanh, mc.relu):
        with pytest.raises(TypeError, match="float32 or float64 expected, got Tensor"):
            function(x)


def test_values_of_one_hot_that_its_type_cannot_hold():
    for value, dtype in [(300, np.uint8), (0.5, np.int32), (-1, np.uint8)]:
        with pytest.raises(ValueError, match=f"must be values of {np.dtype(dtype)}, got {value}"):
            mc.one_hot([1], 3, on_value=value, dtype=dtype)


def test_what_is_masked_is_not_taken_for_what_it_hides():
    masked = np.ma.masked_array(ones(2, 3), mask=[[0, 0, 1]] * 2)
    model = mc.Sequential([mc.layers.Dense(2)])
    model.build((None, 3), 0)
    with pytest.raises(TypeError, match=r"must not be masked: fill it first \(array.filled"):
        model.predict(masked)
    with pytest.raises(TypeError, match="`inputs` must be a NumPy array, got a masked array"):
        model.forward(masked, mc.Context())


@pytest.mark.parametrize("call", [
    lambda number: mc.optimizers.SGD(number), lambda number: mc.layers.Dense(number),
    lambda number: mc.layers.Conv2D(3, number), lambda number: mc.layers.Dropout(0.5, seed=number),
    lambda number: mc.RunConfig(seed=number), lambda number: mc.Context(first_row=number),
    lambda number: mc.layers.Dropout(number), lambda number: mc.one_hot([1], 3, on_value=number),
])
def test_integers_without_end(call):
    for number in (10**400, 10**5000):  # beyond float; too many digits to print
        with pytest.raises(ValueError, match=r"`\w+` must be .*got (inf|1000|<int object)"):
            call(number)


def test_a_pool_that_is_larger_than_its_positions_can_be_numbered():
    with pytest.raises(ValueError, match=r"pool_size, height times width.* at most 2147483647"):
        mc.layers.MaxPooling2D(100_000, padding="same")


def test_a_stride_far_beyond_the_image_takes_no_memory():
    conv = mc.layers.Conv2D(4, 3, strides=2**31 - 1, padding="same")
    model = mc.Sequential([conv])
    model.build((None, 8, 8, 1), 0)
    assert model.predict(ones(1, 8, 8, 1)).shape == (1, 1, 1, 4)
