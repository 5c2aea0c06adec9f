"""Tests of minicnn.estimator.graph with ops, fusion and losses."""

import naive
import numpy as np
import pytest
from layers.passes import without_groups
from tolerances import assert_close, assert_same_bits

import minicnn as mc
from minicnn.core.op import apply

TRAIN, EVAL, INFER = mc.ModeKeys.TRAIN, mc.ModeKeys.EVAL, mc.ModeKeys.INFER


class Add(mc.Op):
    """y = a + b."""

    def forward(self, a, b, ctx):
        return a + b

    def backward(self, dy, ctx, need_dx=True):
        return (dy, dy) if need_dx else (None, None)


class Product(mc.Op):
    """y = a b, element by element."""

    def forward(self, a, b, ctx):
        ctx[self] = a, b
        return a * b

    def backward(self, dy, ctx, need_dx=True):
        a, b = ctx[self]
        return (dy * b, dy * a) if need_dx else (None, None)


class Spy(mc.Op):
    """The identity; it keeps the arguments of backward."""

    def forward(self, x, ctx):
        return x

    def backward(self, dy, ctx, need_dx=True):
        self.need_dx, self.dy = need_dx, np.array(dy)
        return dy if need_dx else None


def add(a, b):
    return apply(Add(), a, b)


def rows(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def scale_start_values(graph, seed=0):
    """Change every parameter: a bias of 0 could hide an error."""
    rng = np.random.default_rng(seed)
    for parameter in graph.parameters.values():
        parameter.value[...] += rng.uniform(-0.3, 0.3, parameter.shape)


def documented_network(features, labels, mode, size=8, filters=(3, 4), units=6, classes=3):
    """The network of the guide, and its loss."""
    x = mc.reshape(features, [-1, size, size, 1])
    conv1 = mc.layers.conv2d(inputs=x, filters=filters[0], kernel_size=[5, 5], padding="same",
                             activation=mc.relu)
    pool1 = mc.layers.max_pooling2d(inputs=conv1, pool_size=[2, 2], strides=2)
    conv2 = mc.layers.conv2d(inputs=pool1, filters=filters[1], kernel_size=[5, 5], padding="same",
                             activation=mc.relu)
    pool2 = mc.layers.max_pooling2d(inputs=conv2, pool_size=[2, 2], strides=2)
    flat = mc.reshape(pool2, [-1, (size // 4) ** 2 * filters[1]])
    dense = mc.layers.dense(inputs=flat, units=units, activation=mc.relu)
    dropout = mc.layers.dropout(inputs=dense, rate=0.4, training=mode == TRAIN)
    logits = mc.layers.dense(inputs=dropout, units=classes)
    mc.softmax(logits, name="softmax_tensor")
    onehot = mc.one_hot(indices=mc.cast(labels, np.int32), depth=classes)
    return mc.losses.softmax_cross_entropy(onehot_labels=onehot, logits=logits)


def trace(network, *shape, dtype=np.float32, mode=TRAIN, parameters=None):
    """Return (graph, features, labels, the result of network)."""
    graph = mc.Graph(0, parameters)
    features = graph.placeholder("features", (None, *shape), dtype)
    labels = graph.placeholder("labels", (None,), np.int64)
    return graph, features, labels, network(features, labels, mode)


def check_parameter_gradients(graph, loss, feeds, seed=7, fuse=True, tolerance=1e-7, entries=40):
    """Compare backward with central differences, along one direction and entry by entry."""
    def context():
        return mc.Context(training=True, rng=np.random.default_rng(seed))

    plan = graph.plan([loss], fuse)

    def value():
        return float(plan.forward(feeds, context())[loss])

    for parameter in graph.parameters.values():
        parameter.grad[...] = np.nan  # to be overwritten
    ctx = context()
    plan.forward(feeds, ctx)
    reached = plan.backward(loss, ctx)
    rng = np.random.default_rng(seed)
    for parameter in reached:
        gradient, start = parameter.grad.copy(), parameter.value.copy()
        moves = [rng.choice([-1.0, 1.0], parameter.shape)]
        for at in rng.permutation(parameter.value.size)[:entries]:
            moves.append(np.zeros(parameter.shape))
            moves[-1].flat[at] = 1
        for move in moves:
            parameter.value[...] = start + 1e-6 * move
            above = value()
            parameter.value[...] = start - 1e-6 * move
            below = value()
            parameter.value[...] = start
            expected = (above - below) / 2e-6
            got = float((gradient * move).sum())
            assert abs(got - expected) < tolerance * max(1, abs(expected)), parameter.name
    return reached


# Tracing ------------------------------------------------------------------------------------------


def test_shapes_are_known_when_the_graph_is_traced():
    def guide(features, labels, mode):
        return documented_network(features, labels, mode, 28, (32, 64), 1024, 10)

    graph, *_ = trace(guide, 784)
    assert [(t.name, t.shape, str(t.dtype)) for t in graph.tensors.values()] == [
        ("features", (None, 784), "float32"),
        ("labels", (None,), "int64"),
        ("reshape", (None, 28, 28, 1), "float32"),
        ("conv2d", (None, 28, 28, 32), "float32"),
        ("max_pooling2d", (None, 14, 14, 32), "float32"),
        ("conv2d_1", (None, 14, 14, 64), "float32"),
        ("max_pooling2d_1", (None, 7, 7, 64), "float32"),
        ("reshape_1", (None, 3136), "float32"),
        ("dense", (None, 1024), "float32"),
        ("dropout", (None, 1024), "float32"),
        ("dense_1", (None, 10), "float32"),
        ("softmax_tensor", (None, 10), "float32"),
        ("cast", (None,), "int32"),
        ("one_hot", (None, 10), "float32"),
        ("softmax_cross_entropy", (), "float32"),
    ]
    assert {name: parameter.shape for name, parameter in graph.parameters.items()} == {
        "conv2d/kernel": (5, 5, 1, 32), "conv2d/bias": (32,),
        "conv2d_1/kernel": (5, 5, 32, 64), "conv2d_1/bias": (64,),
        "dense/kernel": (3136, 1024), "dense/bias": (1024,),
        "dense_1/kernel": (1024, 10), "dense_1/bias": (10,),
    }


@pytest.mark.parametrize("mode", [TRAIN, EVAL])
def test_declared_shapes_are_the_real_ones(mode):
    graph, features, labels, _ = trace(documented_network, 64, mode=mode)
    ctx = mc.Context(training=True, rng=np.random.default_rng(0))
    plan = graph.plan(graph.tensors.values())
    values = plan.forward({features: rows(2, 64), labels: np.array([0, 2])}, ctx)
    for tensor, value in values.items():
        assert (2, *tensor.shape[1:]) == np.shape(value) or tensor.shape == np.shape(value) == ()
        assert tensor.shape == () or tensor.dtype == value.dtype, tensor


def test_summary_lists_tensor_names_shapes_and_parameters():
    graph, *_ = trace(documented_network, 64)
    lines = graph.summary().splitlines()
    assert "tensor" in lines[0]
    assert [line.split()[1] for line in lines[2:-1]] == list(graph.tensors)
    for words in (["softmax_tensor", "(None, 3)"], ["conv2d_1", "(None, 4, 4, 4)", "304"],
                  ["dense", "(None, 6)", "102"]):
        assert any(all(word in line for word in words) for line in lines), words
    assert lines[-1].startswith("total: 505 parameters")  # 78 + 304 + 102 + 21


def test_default_names_count_and_avoid_the_names_that_are_taken():
    graph = mc.Graph()
    x = graph.placeholder("x", (None, 4), np.float32)
    a = mc.layers.dense(x, 4, name="dense_1")
    b, c, d = mc.layers.dense(a, 4), mc.layers.dense(a, 4), mc.layers.dense(a, 4)
    assert [tensor.name for tensor in (a, b, c, d)] == ["dense_1", "dense", "dense_2", "dense_3"]
    assert list(graph.parameters) == [
        f"{name}/{part}" for name in ("dense_1", "dense", "dense_2", "dense_3")
        for part in ("kernel", "bias")
    ]
    assert graph.placeholder("x", (None,), np.int64).name == "x_1"


def test_the_same_explicit_name_twice_is_an_error():
    x = mc.Graph().placeholder("x", (None, 4), np.float32)
    mc.layers.dense(x, 4, name="logits")
    with pytest.raises(ValueError, match="logits: the name is taken"):
        mc.layers.dense(x, 4, name="logits")
    with pytest.raises(ValueError, match="x: the name is taken"):
        mc.relu(x, name="x")


def test_find_by_name():
    graph, features, _, loss = trace(documented_network, 64)
    assert graph.find("softmax_tensor").shape == (None, 3)
    assert graph.find("softmax_tensor:0") is graph.find("softmax_tensor")  # TensorFlow's way
    assert graph.find("features") is features
    assert graph.find(loss.name) is loss
    with pytest.raises(ValueError, match=r"conv2d.*'softmax_tensr'; similar names: softmax_te"):
        graph.find("softmax_tensr")
    with pytest.raises(ValueError, match=r"one of 'features', 'labels', 'reshape', .*'zzz'$"):
        graph.find("zzz")


def test_a_layer_is_applied_once_in_a_graph():
    layer = mc.layers.Dense(4)
    x = mc.Graph().placeholder("x", (None, 4), np.float32)
    y = layer(x)
    with pytest.raises(ValueError, match=r"dense: this layer was applied before.*second layer"):
        layer(y)


def test_inputs_belong_to_one_graph_and_arrays_are_none_of_it():
    a = mc.Graph().placeholder("a", (None, 4), np.float32)
    b = mc.Graph().placeholder("b", (None, 4), np.float32)
    with pytest.raises(ValueError, match="add: the inputs belong to different graphs"):
        add(a, b)
    with pytest.raises(TypeError, match=r"add: arrays and Tensors do not mix.*\(2, 4\).*'a'"):
        add(a, rows(2, 4))


def test_a_tensor_has_no_truth_value():
    x = mc.Graph().placeholder("x", (None, 4), np.float32)
    with pytest.raises(TypeError, match=r"'x'.*has no value yet.*`mode` or `params`"):
        if x:
            pass


WRONG_INPUTS = [
    # The function, the shape and dtype of a row, the error and words of its message.
    (lambda x: mc.layers.conv2d(x, 3, 5), (784,), "float32", ValueError,
     ["conv2d: `inputs` must have 4 dimensions (N, H, W, C), got (None, 784)",
      "reshape to (N, H, W, C)", "(-1, 28, 28, 1)"]),
    (lambda x: mc.layers.max_pooling2d(x, 2, 2), (28, 28), "float32", ValueError,
     ["max_pooling2d: `inputs` must have 4 dimensions", "(None, 28, 28)", "reshape"]),
    (lambda x: mc.layers.conv2d(x, 3, 5, name="first"), (28, 28, 1), "uint8", TypeError,
     ["first", "float32", "uint8", "/ 255"]),
    (lambda x: mc.layers.dense(x, 3), (784,), "int64", TypeError, ["dense", "float32", "int64"]),
    (lambda x: mc.layers.conv2d(mc.reshape(x, [-1, 28, 28, 1]), 3, 5), (784,), "uint8", TypeError,
     ["conv2d", "float32", "uint8", "/ 255"]),
    (lambda x: mc.layers.dense(x, 3), (), "float32", ValueError, ["dense", "(N, ..., features)"]),
    (lambda x: mc.reshape(x, [-1, 28, 28, 1]), (700,), "float32", ValueError,
     ["reshape", "(700,)", "700 elements", "[28, 28, 1]"]),
    (lambda x: mc.argmax(x, axis=2), (10,), "float32", ValueError, ["`axis` 2", "(None, 10)"]),
    (lambda x: mc.softmax(x, axis=3), (10,), "float32", ValueError, ["softmax", "(None, 10)"]),
    (lambda x: mc.one_hot(x, 3), (), "float32", TypeError,
     ["one_hot", "integers", "astype(int)"]),
    (lambda x: mc.losses.softmax_cross_entropy(x, mc.layers.dense(x, 3)), (4,), "float32",
     ValueError, ["softmax_cross_entropy", "(None, 4)", "(None, 3)"]),
]


@pytest.mark.parametrize("case", range(len(WRONG_INPUTS)))
def test_wrong_inputs_are_refused_when_the_graph_is_traced(case):
    function, shape, dtype, error, words = WRONG_INPUTS[case]
    x = mc.Graph().placeholder("x", (None, *shape), dtype)
    with pytest.raises(error) as caught:
        function(x)
    for word in words:
        assert word in str(caught.value)


def test_modes_share_parameters_by_name():
    shared = {}
    first, *_ = trace(documented_network, 64, parameters=shared)
    second, *_ = trace(documented_network, 64, mode=EVAL, parameters=shared)
    assert list(first.parameters) == list(second.parameters) == list(shared)
    for name, parameter in first.parameters.items():
        assert second.parameters[name] is parameter
    x = mc.Graph(0, shared).placeholder("x", (None, 5), np.float32)
    with pytest.raises(ValueError, match=r"dense/kernel.*\(5, 6\).*\(16, 6\).*every mode"):
        mc.layers.dense(x, 6)


def test_a_seed_draws_the_same_start_values():
    first, *_ = trace(documented_network, 64)
    second, *_ = trace(documented_network, 64)
    for a, b in zip(first.parameters.values(), second.parameters.values(), strict=True):
        assert_same_bits(a.value, b.value)


# Running ------------------------------------------------------------------------------------------


def test_forward_returns_the_fetches_and_placeholders_can_be_fetched():
    graph, features, labels, loss = trace(documented_network, 64, mode=EVAL)
    x, y = rows(2, 64), np.array([0, 1])
    fetches = [features, loss]
    values = graph.plan(fetches).forward({features: x, labels: y}, mc.Context())
    assert set(values) == set(fetches)
    assert values[features] is x


def test_labels_are_not_needed_for_predictions():
    graph, features, *_ = trace(documented_network, 64, mode=EVAL)
    probabilities = graph.find("softmax_tensor")
    value = graph.plan([probabilities]).forward({features: rows(2, 64)}, mc.Context())
    assert_close(value[probabilities].sum(axis=1), np.ones(2))


@pytest.mark.parametrize("fuse", [True, False])
@pytest.mark.parametrize("mode", [TRAIN, EVAL])
def test_gradients_of_the_documented_network(mode, fuse):
    graph, features, labels, loss = trace(documented_network, 64, dtype=np.float64, mode=mode)
    scale_start_values(graph)
    feeds = {features: rows(3, 64, dtype=np.float64), labels: np.array([2, 0, 1])}
    reached = check_parameter_gradients(graph, loss, feeds, fuse=fuse)
    assert [parameter.name for parameter in reached] == list(graph.parameters)
    assert all(parameter.dtype == np.float64 for parameter in reached)


def diamond(features, labels, mode):
    """A tensor with three consumers, one of which is the last one in backward."""
    h = mc.layers.dense(features, 5, activation=mc.tanh)
    a, b = mc.layers.dense(h, 5, activation=mc.relu), mc.layers.dense(h, 5)
    joined = add(add(a, h), mc.relu(b))
    logits = mc.layers.dense(joined, 3)
    return mc.losses.softmax_cross_entropy(mc.one_hot(labels, 3), logits)


def square(features, labels, mode):
    """A tensor that is both inputs of one op."""
    h = mc.layers.dense(features, 5)
    logits = mc.layers.dense(apply(Product(), h, h), 3)
    return mc.losses.softmax_cross_entropy(mc.one_hot(labels, 3), logits)


def views(features, labels, mode):
    """A tensor whose consumers return their dy itself: adding must not write into it."""
    h = mc.layers.dense(features, 6)
    a = mc.reshape(mc.reshape(h, [-1, 2, 3]), [-1, 6])
    logits = mc.layers.dense(add(add(a, mc.identity(h)), h), 3)
    return mc.losses.softmax_cross_entropy(mc.one_hot(labels, 3), logits)


@pytest.mark.parametrize("fuse", [True, False])
@pytest.mark.parametrize("network", [diamond, square, views])
def test_gradients_of_a_tensor_that_is_used_twice_add_up(network, fuse):
    graph, features, labels, loss = trace(network, 4, dtype=np.float64)
    scale_start_values(graph)
    feeds = {features: rows(6, 4, dtype=np.float64), labels: np.arange(6) % 3}
    assert len(check_parameter_gradients(graph, loss, feeds, fuse=fuse)) == len(graph.parameters)


def test_a_used_workspace_changes_no_gradient_of_a_tensor_that_is_used_twice():
    graph, features, labels, loss = trace(diamond, 4)
    plan, workspace = graph.plan([loss]), mc.Workspace()
    results = []
    for space in (None, workspace, workspace):
        ctx = mc.Context(workspace=space)
        plan.forward({features: rows(6, 4), labels: np.arange(6) % 3}, ctx)
        results.append([parameter.grad.copy() for parameter in plan.backward(loss, ctx)])
    for fresh, first, second in zip(*results, strict=True):
        assert_same_bits(fresh, first, second)


def test_a_scale_multiplies_every_gradient():
    graph, features, labels, loss = trace(diamond, 4)
    plan, ctx = graph.plan([loss]), mc.Context()
    plan.forward({features: rows(6, 4), labels: np.arange(6) % 3}, ctx)
    whole = [parameter.grad.copy() for parameter in plan.backward(loss, ctx)]
    half = [parameter.grad for parameter in plan.backward(loss, ctx, scale=0.5)]
    assert any(gradient.any() for gradient in whole)
    for gradient, expected in zip(half, whole, strict=True):
        assert_same_bits(gradient, expected / 2)


def test_parameters_that_the_loss_does_not_reach_keep_their_gradient():
    def network(features, labels, mode):
        h = mc.layers.dense(features, 4, name="used")
        side = mc.layers.dense(h, 4, name="side")
        logits = mc.layers.dense(h, 3, name="logits")
        mc.argmax(side, axis=1, name="classes")
        return mc.losses.softmax_cross_entropy(mc.one_hot(labels, 3), logits)

    graph, features, labels, loss = trace(network, 4)
    side = graph.parameters["side/kernel"]
    side.grad[...] = 7
    plan, ctx = graph.plan([loss, graph.find("classes")]), mc.Context()  # a hook fetches the latter
    plan.forward({features: rows(6, 4), labels: np.arange(6) % 3}, ctx)
    reached = plan.backward(loss, ctx)
    assert [parameter.name for parameter in reached] == [
        "used/kernel", "used/bias", "logits/kernel", "logits/bias",
    ]
    assert (side.grad == 7).all()


def test_the_gradient_of_an_input_is_computed_only_if_it_depends_on_a_parameter():
    outside, inside, joined = Spy("outside"), Spy("inside"), Add("joined")
    asked = {}

    class Dense(mc.layers.Dense):
        def backward(self, dy, ctx, need_dx=True):
            asked[self.name] = need_dx
            return super().backward(dy, ctx, need_dx)

    graph = mc.Graph()
    x = graph.placeholder("x", (None, 4), np.float32)
    labels = graph.placeholder("labels", (None,), np.int64)
    data = outside(mc.reshape(x, [-1, 4]))  # no parameter before it: no gradient is needed
    hidden = inside(Dense(4, name="first")(x))
    logits = Dense(3, name="last")(apply(joined, data, hidden))
    loss = mc.losses.softmax_cross_entropy(mc.one_hot(labels, 3), logits)
    plan, ctx = graph.plan([loss]), mc.Context()
    plan.forward({x: rows(6, 4), labels: np.arange(6) % 3}, ctx)
    assert len(plan.backward(loss, ctx)) == 4
    assert asked == {"first": False, "last": True}
    assert inside.need_dx
    assert not hasattr(outside, "dy")


def test_backward_begins_with_one():
    graph, features, labels, loss = trace(diamond, 4, dtype=np.float64)
    spy = Spy()
    end = spy(loss)
    plan, ctx = graph.plan([end]), mc.Context()
    plan.forward({features: rows(6, 4, dtype=np.float64), labels: np.arange(6) % 3}, ctx)
    plan.backward(end, ctx)
    assert spy.dy == 1


# Fusion -------------------------------------------------------------------------------------------


def relu_as_argument(x):
    return mc.layers.dense(mc.reshape(mc.layers.conv2d(x, 3, 3, activation=mc.relu), [-1, 48]), 5,
                           activation="relu")


def relu_as_node(x):
    conv = mc.relu(mc.layers.conv2d(x, 3, 3))
    return mc.relu(mc.layers.dense(mc.reshape(conv, [-1, 48]), 5))


def relu_as_layer(x):
    conv = mc.layers.Activation("relu")(mc.layers.conv2d(x, 3, 3))
    return mc.layers.Activation(mc.relu)(mc.layers.dense(mc.reshape(conv, [-1, 48]), 5))


def sequential(x):
    return mc.Sequential([
        mc.layers.Conv2D(3, 3), mc.layers.Activation("relu"), mc.layers.Flatten(),
        mc.layers.Dense(5, activation="relu"),
    ])(x)


def relu_then_pool(x):
    conv = mc.layers.conv2d(x, 3, 3, padding="same", activation=mc.relu)
    pool = mc.layers.max_pooling2d(conv, 2, 2)
    return mc.layers.dense(mc.reshape(pool, [-1, 27]), 5, activation=mc.relu)


def stand_ins(graph, plan):
    """Count the steps whose op is not in the graph: fused ones."""
    own = {tensor.op for tensor in graph.tensors.values()}
    return sum(op not in own for op in without_groups(step.op for step in plan.steps))


def loss_of(body):
    def network(features, labels, mode):
        logits = mc.layers.dense(body(features), 3, name="logits")
        return mc.losses.softmax_cross_entropy(mc.one_hot(labels, 3), logits)
    return network


def values_and_gradients(graph, plan, loss, feeds, seed=3):
    ctx = mc.Context(training=True, rng=np.random.default_rng(seed))
    values = plan.forward(feeds, ctx)
    plan.backward(loss, ctx)
    return values, {name: p.grad.copy() for name, p in graph.parameters.items()}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "body", [relu_as_argument, relu_as_node, relu_as_layer, relu_then_pool, sequential]
)
def test_fused_is_unfused(body, dtype):
    graph, features, labels, loss = trace(loss_of(body), 6, 6, 2, dtype=dtype)
    scale_start_values(graph)
    logits = graph.find("logits")
    feeds = {features: rows(4, 6, 6, 2, dtype=dtype), labels: np.array([0, 1, 2, 0])}
    fused, plain = (graph.plan([loss, logits], fuse) for fuse in (True, False))
    assert stand_ins(graph, fused) == 2
    assert stand_ins(graph, plain) == 0
    values, gradients = values_and_gradients(graph, fused, loss, feeds)
    expected, expected_gradients = values_and_gradients(graph, plain, loss, feeds)
    assert_close(values[logits], expected[logits])
    assert values[loss] == pytest.approx(expected[loss], rel=1e-5)
    for name, gradient in expected_gradients.items():
        assert np.abs(gradient).max() > 0
        assert_close(gradients[name], gradient)


def test_the_environment_forbids_fusing(monkeypatch):
    graph, *_, loss = trace(loss_of(relu_then_pool), 6, 6, 2)
    monkeypatch.setenv("MINICNN_FUSE", "0")
    assert stand_ins(graph, graph.plan([loss])) == 0


@pytest.mark.parametrize("fuse", [True, False])
def test_a_fetched_tensor_is_not_fused_away(fuse):
    graph, features, labels, loss = trace(loss_of(relu_as_node), 6, 6, 2)
    scale_start_values(graph)
    names = ["conv2d", "relu", "dense", "relu_1", "logits"]
    tensors = [graph.find(name) for name in names]
    x, value = rows(4, 6, 6, 2), {name: p.value for name, p in graph.parameters.items()}
    feeds = {features: x, labels: np.array([0, 1, 2, 0])}
    values, gradients = values_and_gradients(graph, graph.plan([loss, *tensors], fuse), loss, feeds)

    conv = naive.conv2d(x, value["conv2d/kernel"], value["conv2d/bias"])
    relu = naive.relu(conv)
    dense = naive.dense(relu.reshape(4, 48), value["dense/kernel"], value["dense/bias"])
    last = naive.dense(naive.relu(dense), value["logits/kernel"], value["logits/bias"])
    assert (conv < 0).any()
    assert (dense < 0).any()
    expected = [conv, relu, dense, naive.relu(dense), last]
    for tensor, oracle in zip(tensors, expected, strict=True):
        assert_close(values[tensor], oracle, magnitude=2 * np.abs(oracle).max())
    _, without = values_and_gradients(graph, graph.plan([loss], fuse), loss, feeds)
    for name, gradient in without.items():  # fetching a tensor does not change training
        assert_close(gradients[name], gradient)


def test_a_fetched_tensor_before_a_pool_is_not_fused_away():
    graph, features, labels, loss = trace(loss_of(relu_then_pool), 6, 6, 2)
    scale_start_values(graph)
    x, conv = rows(4, 6, 6, 2), graph.find("conv2d")
    feeds = {features: x, labels: np.array([0, 1, 2, 0])}
    values, gradients = values_and_gradients(graph, graph.plan([loss, conv]), loss, feeds)
    value = {name: p.value for name, p in graph.parameters.items()}
    oracle = naive.relu(naive.conv2d(x, value["conv2d/kernel"], value["conv2d/bias"],
                                     padding="same"))
    assert_close(values[conv], oracle, magnitude=2 * oracle.max())
    expected, expected_gradients = values_and_gradients(graph, graph.plan([loss]), loss, feeds)
    assert values[loss] == pytest.approx(expected[loss], rel=1e-5)
    for name, gradient in expected_gradients.items():
        assert_close(gradients[name], gradient)


def test_a_tensor_with_two_consumers_is_not_fused_away():
    def network(features, labels, mode):
        z = mc.layers.dense(features, 3)
        return mc.losses.softmax_cross_entropy(mc.one_hot(labels, 3), add(z, mc.relu(z)))

    graph, features, labels, loss = trace(network, 4, dtype=np.float64)
    scale_start_values(graph)
    feeds = {features: rows(6, 4, dtype=np.float64), labels: np.arange(6) % 3}
    check_parameter_gradients(graph, loss, feeds)
    value = {name: p.value for name, p in graph.parameters.items()}
    z = naive.dense(feeds[features], value["dense/kernel"], value["dense/bias"])
    expected = naive.softmax_cross_entropy(np.eye(3)[feeds[labels]], z + naive.relu(z))
    got = graph.plan([loss]).forward(feeds, mc.Context())[loss]
    assert got == pytest.approx(expected, rel=1e-12)


def branches(features, labels, mode):
    """Two dropouts on branches of different length: which one draws first?"""
    h = mc.layers.dense(features, 8, name="hidden")
    a = mc.layers.dropout(features, 0.5, training=mode == TRAIN)
    b = mc.layers.dropout(h, 0.5, training=mode == TRAIN)
    logits = mc.layers.dense(add(mc.layers.dense(a, 8), b), 3, name="logits")
    return mc.losses.softmax_cross_entropy(mc.one_hot(labels, 3), logits)


def test_neither_fusing_nor_fetching_changes_what_dropout_drops():
    graph, features, labels, loss = trace(branches, 4)
    feeds = {features: rows(6, 4), labels: np.arange(6) % 3}
    logits, hidden = graph.find("logits"), graph.find("hidden")
    results = [
        values_and_gradients(graph, graph.plan(fetches, fuse), loss, feeds)[0][logits]
        for fetches in ([loss, logits], [loss, logits, hidden]) for fuse in (False, True)
    ]
    for result in results[1:]:
        assert_close(result, results[0])


# Labels -------------------------------------------------------------------------------------------


def test_a_bad_label_of_a_loss_is_an_error_that_names_row_and_value():
    graph, features, labels, loss = trace(documented_network, 64, mode=EVAL)
    plan = graph.plan([loss])
    for bad in (3, -1, 99):
        feeds = {features: rows(4, 64), labels: np.array([0, 1, bad, 2])}
        with pytest.raises(ValueError, match=rf"row 2 is {bad}, outside the classes 0 to 2"):
            plan.forward(feeds, mc.Context())


def test_a_bad_label_is_found_when_the_loss_is_only_one_of_the_consumers():
    def network(features, labels, mode):
        onehot = mc.one_hot(labels, 3)
        mc.argmax(onehot, axis=1, name="classes")
        return mc.losses.softmax_cross_entropy(onehot, mc.layers.dense(features, 3))

    graph, features, labels, loss = trace(network, 4)
    feeds = {features: rows(2, 4), labels: np.array([0, 5])}
    with pytest.raises(ValueError, match="row 1 is 5"):
        graph.plan([loss, graph.find("classes")]).forward(feeds, mc.Context())


def test_plain_one_hot_keeps_the_row_that_is_all_off():
    graph = mc.Graph()
    indices = graph.placeholder("indices", (None,), np.int64)
    onehot = mc.one_hot(indices, 3, on_value=5, off_value=-1, dtype=np.float64)
    got = graph.plan([onehot]).forward({indices: np.array([0, 3, -1, 2])}, mc.Context())[onehot]
    assert got.dtype == np.float64
    assert got.tolist() == [[5, -1, -1], [-1, -1, -1], [-1, -1, -1], [-1, -1, 5]]


def test_labels_given_as_rows_are_checked_too():
    graph = mc.Graph()
    x = graph.placeholder("x", (None, 4), np.float32)
    labels = graph.placeholder("labels", (None, 3), np.float32)
    loss = mc.losses.softmax_cross_entropy(labels, mc.layers.dense(x, 3))
    feeds = {x: rows(2, 4), labels: np.array([[0, 1, 0], [0, 0, 0]], np.float32)}
    with pytest.raises(ValueError, match=r"row 1 of the labels is \[0.0, 0.0, 0.0\]"):
        graph.plan([loss]).forward(feeds, mc.Context())


@pytest.mark.parametrize("of_rows", [False, True])
@pytest.mark.parametrize("column", [False, True])
def test_weights_may_be_a_tensor(of_rows, column):
    graph = mc.Graph()
    x = graph.placeholder("x", (None, 4), np.float64)
    labels = graph.placeholder("labels", (None, 3) if of_rows else (None,), np.int64)
    weights = graph.placeholder("weights", (None, 1) if column else (None,), np.float32)
    layer = mc.layers.Dense(3)
    logits = layer(x)
    onehot = labels if of_rows else mc.one_hot(labels, 3)
    loss = mc.losses.softmax_cross_entropy(onehot, logits, weights=weights)
    numbers = np.array([0, 1, 2, 0])
    w = np.array([1, 0, 2, 3], np.float32)
    y = np.eye(3, dtype=int)[numbers]
    feeds = {
        x: rows(4, 4, dtype=np.float64), labels: y if of_rows else numbers,
        weights: w[:, None] if column else w,
    }
    ctx = mc.Context()
    plan = graph.plan([loss, logits])
    got = plan.forward(feeds, ctx)
    assert got[loss] == pytest.approx(naive.softmax_cross_entropy(y, got[logits], w), rel=1e-12)
    plan.backward(loss, ctx)
    dlogits = naive.softmax_cross_entropy_backward(y, got[logits], w)
    np.testing.assert_allclose(layer.kernel.grad, feeds[x].T @ dlogits, rtol=1e-10)


def test_a_weight_that_is_not_finite_is_found_in_its_batch():
    graph = mc.Graph()
    x = graph.placeholder("x", (None, 3), np.float32)
    labels = graph.placeholder("labels", (None,), np.int64)
    weights = graph.placeholder("weights", (None,), np.float32)
    loss = mc.losses.softmax_cross_entropy(mc.one_hot(labels, 3), x, weights=weights)
    feeds = {x: rows(2, 3), labels: np.array([0, 1]), weights: np.array([1, np.nan], np.float32)}
    with pytest.raises(ValueError, match=r"`weights` must be .* finite"):
        graph.plan([loss]).forward(feeds, mc.Context())


# Layers and models that were built before ---------------------------------------------------------


def test_a_layer_built_before_keeps_its_weights():
    layer = mc.layers.Dense(3, name="mine")
    layer.build((None, 4), rng=5)
    start, kernel = layer.kernel.value.copy(), layer.kernel
    graph = mc.Graph()
    x = graph.placeholder("x", (None, 4), np.float32)
    y = layer(x)
    assert layer.kernel is kernel is graph.parameters["mine/kernel"]
    assert_same_bits(kernel.value, start)
    got = graph.plan([y]).forward({x: rows(2, 4)}, mc.Context())[y]
    assert_same_bits(got, layer.forward(rows(2, 4), mc.Context()))
    other = mc.Graph().placeholder("x", (None, 5), np.float32)
    with pytest.raises(ValueError, match=r"mine: built for.*\(None, 4\).*\(None, 5\).*new layers"):
        layer(other)


@pytest.mark.parametrize("both", [True, False])
def test_two_layers_without_a_name_do_not_become_one(both):
    first, second = mc.layers.Dense(4), mc.layers.Dense(4)
    if both:
        first.build((None, 4), rng=1)
    second.build((None, 4), rng=2)
    start = second.kernel.value.copy()
    graph = mc.Graph()
    x = graph.placeholder("x", (None, 4), np.float32)
    try:
        second(first(x))
    except ValueError as error:  # an error that asks for names is fine, too
        assert "name" in str(error)
        return
    assert first.kernel is not second.kernel
    assert_same_bits(second.kernel.value, start)
    assert len(graph.parameters) == 4


@pytest.mark.parametrize("built", [True, False])
def test_a_model_inside_a_model_fn_is_the_model_that_is_trained(built, tmp_path):
    model = mc.Sequential([
        mc.layers.Dense(6, activation="tanh"), mc.layers.Dropout(0.6), mc.layers.Dense(3),
    ])
    if built:
        model.build((None, 4), rng=3)
        start = [parameter.value.copy() for parameter in model.parameters]

    def model_fn(features, labels, mode):
        logits = model(features)
        loss = train_op = None
        if mode != INFER:
            loss = mc.losses.softmax_cross_entropy(mc.one_hot(labels, 3), logits)
        if mode == TRAIN:
            train_op = mc.optimize_loss(loss, learning_rate=0.5, optimizer="SGD")
        return mc.ModelFnOps(mode, {"logits": logits}, loss, train_op)

    class Dropped(mc.hooks.SessionRunHook):
        def before_run(self, run_context):
            return mc.hooks.SessionRunArgs(model.layers[1].name)

        def after_run(self, run_context, run_values):
            self.share = np.mean(run_values.results == 0)

    x, y, dropped = rows(30, 4), np.arange(30) % 3, Dropped()
    estimator = mc.Estimator(model_fn, tmp_path, config=mc.RunConfig(seed=0))
    estimator.fit(x, y, steps=5, batch_size=30, monitors=[dropped])
    assert dropped.share > 0.5  # a Dropout object drops in training only
    for parameter in model.parameters:
        assert_same_bits(estimator.get_variable_value(parameter.name), parameter.value)
    if built:
        for parameter, before in zip(model.parameters, start, strict=True):
            assert not np.array_equal(parameter.value, before)
        assert_same_bits(estimator.predict(x, as_iterable=False)["logits"], model.predict(x))
    value = {p.name.removeprefix("sequential/"): p.value for p in model.parameters}
    hidden = np.tanh(naive.dense(x, value["dense/kernel"], value["dense/bias"]))
    logits = naive.dense(hidden, value["dense_1/kernel"], value["dense_1/bias"])
    assert_close(estimator.predict(x, as_iterable=False)["logits"], logits.astype(np.float32))
    loss = naive.softmax_cross_entropy(np.eye(3)[y], logits)
    assert estimator.evaluate(x, y)["loss"] == pytest.approx(loss, rel=1e-5)


class Weighted(mc.Op):
    """An op of two inputs, integers and floats; it keeps the dtype that it was built for."""

    def build(self, input_shape, rng, dtype=np.float32):
        self.dtype = dtype
        return ()


@pytest.mark.parametrize("reverse", [False, True])
def test_the_dtype_of_an_op_is_that_of_its_floats_in_any_order_of_its_inputs(reverse):
    graph, op = mc.Graph(), Weighted()
    inputs = [
        graph.placeholder("factor", (None,), np.int64), graph.placeholder("x", (None,), np.float32),
    ]
    y = apply(op, *(reversed(inputs) if reverse else inputs))
    assert y.dtype == op.dtype == np.float32
