"""Break minicnn on purpose, in one place at a time: does the test suite notice every time?

    python benchmarks/mutation.py

Each row of the table below changes one place: an index that is off by one, swapped axes, a missing
bias, ties that go to another winner, a wrong scale. A row names the place by its symbol, and
`operators.py` makes the change, so that a row outlives the layout of the code. Each change is made
in a copy of the checkout, and the tests of the row run there: at least one must fail. The program
ends with an error if a change survives, which asks for a missing test, or if a row does not apply.
"""

import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import harness
from operators import (
    NotApplicableError,
    argument,
    arithmetic,
    changed,
    compare,
    condition,
    drop,
    operand,
    path_of,
    plain,
    replace,
    returns,
    swap,
    swap_items,
    unwrap,
)

ROOT = Path(__file__).parents[1]
DEADLINE = 600  # seconds for the tests of one change; a change that makes them hang is noticed

# Arguments of pytest: the fewest tests that should notice.
ACTIVATION = "tests/layers/test_activation.py"
AUGMENT = "tests/test_augment.py"
BAD_INPUT = "tests/test_bad_input.py"
BUILT_BEFORE = "tests/layers/test_built_before.py"
CACHE = "tests/kernels/test_cache.py"
CHAIN = "tests/layers/test_chain.py"
CHECKPOINTS = "tests/estimator/test_checkpoints.py"
CONFORMANCE = "tests/layers/test_conformance.py"
CONV = "tests/kernels/test_conv.py"
CONV2D = "tests/layers/test_conv2d.py"
DENSE = "tests/layers/test_dense.py"
DENSE_LISTS = "tests/kernels/test_fast_paths.py -k dense_gradients"
DEPTHWISE = "tests/kernels/test_depthwise.py"
DROPOUT = "tests/layers/test_dropout.py"
ELEMENTWISE = "tests/kernels/test_elementwise.py"
FAST = "tests/kernels/test_fast_paths.py"
FILES = "tests/core/test_files.py"
FIRST_TRIES = "tests/test_first_tries.py"
FIT = "tests/test_sequential.py"
FUSED_DROPOUT = "tests/kernels/test_fast_paths.py -k dropout_in_a_dense_layer"
FUSION = "tests/layers/test_fusion.py"
GEMM = "tests/kernels/test_gemm.py"
GRAPH = "tests/estimator/test_graph.py"
INITIALIZERS = "tests/test_initializers.py"
JIT = "tests/kernels/test_jit.py"
INFERENCE = "tests/test_inference.py"
LOSSES = "tests/test_losses.py"
MAX_POOLING = "tests/layers/test_max_pooling2d.py"
METRICS = "tests/test_metrics.py"
NORMALIZATION = "tests/layers/test_batch_normalization.py"
MORE_CONVOLUTIONS = "tests/layers/test_more_convolutions.py"
NUMBERS = "tests/test_numbers.py"
OPS = "tests/test_ops.py"
GRADCHECK = "tests/core/test_gradcheck.py"
ARITHMETIC = "tests/test_arithmetic.py"
OTHER_LOSSES = "tests/test_other_losses.py"
RECORDING = "tests/kernels/test_recording.py"
REPEATED = "tests/layers/test_repeated.py"
RESIDUAL = "tests/layers/test_residual.py"
ONNX_READER = "tests/extras/test_onnx_reader.py"
OPTIMIZERS = "tests/test_optimizers.py"
PARAMETER = "tests/core/test_parameter.py"
POOLING = "tests/kernels/test_pooling.py"
PROGRESS = "tests/extras/test_progress.py"
REGULARIZATION = "tests/estimator/test_regularization.py"
REGULARIZERS = "tests/layers/test_regularizers.py"
POOLING2D = "tests/layers/test_pooling2d.py"
SHAPE = "tests/layers/test_shape.py"
TRAINABLE = "tests/layers/test_trainable.py"
STARTING = "tests/estimator/test_starting.py"
THREADS = "tests/kernels/test_threads.py"
UPDATE = "tests/kernels/test_update.py"
WARP = "tests/kernels/test_warp.py"
WEIGHTS = "tests/core/test_weights.py"
WHICH_WEIGHTS = "tests/estimator/test_which_weights.py"
WINOGRAD = "tests/kernels/test_winograd.py"
WINDOW = "tests/kernels/test_window.py"


# (what is wrong, symbol, operator, which of the places that it finds, tests)
MUTATIONS = [
    # layers, forward and backward
    ("missing bias", "layers.affine:Affine.bias_value", condition(True), None, DENSE),
    ("missing activation", "layers.affine:Affine.forward", condition(True), None, CONV2D),
    ("gradient past the activation", "layers.affine:Affine.backward", condition(True), None,
     CONV2D),
    ("bias gradient without the first row", "layers.dense:Dense.linear_backward",
     argument("sum_rows", 0, "_rows(dy)[1:]"), None, DENSE),
    ("rows of a batch counted wrong for dropout", "layers.dense:Dense.linear",
     replace("math.prod(x.shape[1:-1])", "1"), None, FUSION),
    ("missing gradient of the bias", "layers.affine:Affine.bias_grad", condition(True), None,
     CONV2D),
    ("transposed convolution: size of the output",
     "layers.conv2d_transpose:Conv2DTranspose.slide", replace("max(k - s, 0)", "k - s"), None,
     MORE_CONVOLUTIONS),
    ("transposed convolution without a bias",
     "layers.conv2d_transpose:Conv2DTranspose.multiply", argument("input_gradient", 4), None,
     MORE_CONVOLUTIONS),
    ("gradient past ReLU", "layers.convolution:Convolution.all_gradients", condition(False),
     "y", FUSION),
    ("gradient of the bias left out", "layers.convolution:Convolution.all_gradients",
     drop("Expr"), "sum_rows", MORE_CONVOLUTIONS),
    ("separable: bias in both parts", "layers.depthwise_conv2d:SeparableConv2D.multiply",
     replace("np.zeros(p.shape[2], x.dtype)", "np.ones(p.shape[2], x.dtype)"), None,
     MORE_CONVOLUTIONS),
    ("regularizer of the depthwise kernel lost", "layers.layer:Layer.initialize",
     replace("argument.replace('initializer', 'regularizer')", "'kernel_regularizer'"), None,
     MORE_CONVOLUTIONS),
    ("L2: factor 1/2 left out", "layers.regularizers:l2_regularizer.__call__",
     arithmetic("/", "left"), None, REGULARIZERS),
    ("L1: gradient without the sign", "layers.regularizers:l1_regularizer.gradient",
     replace("np.sign(value)", "value"), None, REGULARIZERS),
    ("gradient replaced by that of the regularizer",
     "core.parameter:Parameter.add_penalty_gradient", plain(), None, REGULARIZERS),
    ("regularizers without their gradient", "estimator.session:TrainingSession._step",
     drop("Expr"), "add_penalty_gradient", REGULARIZATION),
    ("regularizers counted by every process", "estimator.session:TrainingSession._step",
     argument("add_penalty_gradient", 0, "1.0"), None,
     "tests/extras/test_distributed.py -k one_process_does"),
    ("loss without the regularizers", "estimator.tracing:_TotalLoss.forward",
     returns("x"), None, REGULARIZATION),
    ("a graph's regularizer is lost with the weights of a checkpoint",
     "estimator.graph:Graph._share", drop("Assign"), "regularizer", REGULARIZATION),
    ("swapped axes of the inputs", "layers.sliding:DataFormat.to_nhwc",
     replace("elementwise.axis_to_end(x, 1)", "elementwise.axis_to_end(x, 2)"), None, CONV2D),
    ("transpose: rows that fill no vector are left out", "kernels.elementwise:_transpose",
     replace("wide if i < high else 0", "wide"), None, CONV2D),
    ("strides of 1 for those of the window", "layers.pooling2d:Pooling2D.__init__",
     replace("self.size", "(1, 1)"), 0, MAX_POOLING),
    ("a pooling padded by the size of the window", "layers.pooling2d:Pooling2D.__init__",
     compare(">=", ">"), None, MAX_POOLING),
    ("swapped axes of the gradient", "layers.pooling2d:Pooling2D.backward",
     unwrap("from_nhwc"), None, MAX_POOLING),
    ("a frozen normalization takes the batch",
     "layers.batch_normalization:BatchNormalization.uses_batch", replace("self.trainable", "True"),
     None, NORMALIZATION),
    ("a folded normalization forgets the bias",
     "layers.batch_normalization:BatchNormalization.folded",
     replace("bias + shift", "shift"), None, f"{FUSION} -k predictions"),
    ("start values of moving averages count", "kernels.normalize:_factors",
     replace("momentum ** (done + 1.0)", "0.0"), None, NORMALIZATION),
    ("repeated calls: the statistics of one process", "layers.batch_normalization:_total",
     condition(True), None, f"{REPEATED} -k processes"),
    ("gradient without the mask", "layers.dropout:Dropout.backward", condition(True), "key",
     DROPOUT),
    ("mask of the first rows for every batch", "layers.dropout:Dropout._drop",
     replace("ctx.first_row", "0"), 0, DROPOUT),
    ("wrong scale", "layers.dropout:Dropout._drop", argument("multiply", 1, "1"), None, DROPOUT),
    ("NaN is not dropped", "layers.dropout:Dropout._drop", argument("multiply", "where"), None,
     DROPOUT),
    ("two layers train one array of an initializer", "layers.layer:Layer.add_parameter",
     unwrap("array"), None, f"{BAD_INPUT} -k initializer_keeps"),
    ("a build that fails leaves what is inside built", "core.op:all_or_nothing",
     replace("parts(op)", "[op]"), None, f"{CONFORMANCE} -k fails_to_build"),
    ("a built layer is built again", "layers.layer:build_once", condition(True), "op.parameters",
     BUILT_BEFORE),
    ("a frozen layer is trained", "core.parameter:Parameter.trainable", operand("and", 1), None,
     TRAINABLE),
    ("a read-only array is written into", "core.parameter:Parameter.writable", condition(False),
     None, PARAMETER),
    ("a weight is broadcast from an array of another shape", "core.parameter:Parameter._copy",
     condition(False), None, PARAMETER),
    ("an assigned array is not copied", "core.parameter:Parameter._copy",
     drop("Assign"), "array[...] = new", PARAMETER),
    ("an argument of another name is not answered", "core.hints:_instead", condition(False), "ours",
     FIRST_TRIES),
    ("a model with one layer more goes on with the old run", "sequential:Sequential.add",
     drop("Assign"), "self._left", FIRST_TRIES),
    ("gradient past the activation", "layers.activation:Activation.backward", returns("dy"), None,
     ACTIVATION),
    ("swapped axes", "layers.shape:Reshape.forward",
     argument("reshape", "order", "'F'"), None, SHAPE),
    ("one layer left out on the way back", "layers.chain:Chain.backward",
     replace("self._chain[1:]", "self._chain[2:]"), None, CHAIN),
    ("gradient that nobody asked for", "layers.chain:Chain.backward",
     argument("backward", 2), None, CONFORMANCE),
    ("wrong scale of the gradient", "layers.dense:Dense.linear", arithmetic("/", "left"), None,
     FUSION),
    ("gradient past ReLU", "layers.dense:Dense.linear_backward", condition(False), 0, FUSION),
    ("gradient past ReLU", "layers.conv2d:Conv2D.all_gradients", condition(True), "y is None",
     FUSION),
    ("fused with ReLU, computed without", "layers.fusion:Fused.forward",
     argument("linear", 2, "False"), None, FUSION),
    ("windows of 3x3 taken for 2x2", "layers.fusion:_pools_by_two",
     replace("pool.size", "pool.strides"), None, FUSION),
    # ops, losses, optimizers, graph
    ("sigmoid: half of the derivative", "kernels.elementwise:_squash",
     replace("factor * e", "factor"), None, OPS),
    ("sigmoid: the half below zero is that above", "kernels.elementwise:_squash",
     replace("e if x[i] < 0 else one", "one"), None, NUMBERS),
    ("tanh: the derivative of sigmoid", "kernels.elementwise:_squash",
     replace("4", "1"), None, OPS),
    ("exponential: the last bits of log 2 left out", "kernels.elementwise:_exponential",
     replace("low", "least - least"), None, ELEMENTWISE),
    ("softmax: the largest of the first elements", "kernels.elementwise:_softmax",
     replace("row[u] > largest", "False"), None, ELEMENTWISE),
    ("softmax: wrong axis", "ops:Softmax.write", argument("sum", "axis", "0"), None, OPS),
    ("log_softmax: wrong axis", "ops:LogSoftmax.write", argument("sum", "axis", "0"), None,
     OPS),
    ("leaky ReLU: slope left out", "ops:Relu.write", argument("relu_gradient", "slope", "0.0"),
     None, OPS),
    ("GELU: the slope of P left out", "kernels.elementwise:_gelu",
     replace("upper + z * density * x.dtype.type(_DENSITY)", "upper"), None, OPS),
    ("argmax: ties go to the last", "ops:Argmax.forward",
     returns("x.shape[self.axis] - 1 - np.argmax(np.flip(x, self.axis), axis=self.axis)"), None,
     OPS),
    ("one_hot: numbers in the other place", "ops:OneHot.forward", swap("where", 1, 2), None, OPS),
    ("rows of weight 0 count", "losses:_DIVISORS",
     replace("np.count_nonzero(w)", "w.size"), None, LOSSES),
    ("a label of zero times infinity", "losses:SoftmaxCrossEntropy.terms", compare(">", ">="),
     None, NUMBERS),
    ("wrong scale of smoothing", "losses:SoftmaxCrossEntropy.terms", arithmetic("/", "left"),
     "smoothing", LOSSES),
    ("scale of the gradient left out", "losses:_Loss.backward", arithmetic("*", "right"),
     "float(dy)", LOSSES),
    ("squared error: half of the gradient", "losses:_MeanSquaredError.terms",
     arithmetic("*", "right"), "2 * error", OTHER_LOSSES),
    ("sigmoid: smoothing by classes", "losses:_SigmoidCrossEntropy.terms",
     arithmetic("/", "left"), "self.label_smoothing", OTHER_LOSSES),
    ("weights of rows for terms", "losses:_Loss.forward", condition(False), "divisor",
     OTHER_LOSSES),
    ("concat: parts in another order", "ops:Concat.backward", argument("split", 2, "0"), None,
     ARITHMETIC),
    ("mean: gradient of the sum", "ops:ReduceMean.backward",
     arithmetic("/", "left"), "dx", ARITHMETIC),
    ("sum and ReLU: gradient past ReLU", "ops:Add.backward", condition(False), "relu",
     ARITHMETIC),
    ("residual: no gradient through the shortcut", "layers.residual:Residual.backward",
     argument("total", 1, "0 * dy"), None, RESIDUAL),
    ("RMSprop: the mean of squares starts at 0", "optimizers:RMSprop._numbers",
     replace("self.epsilon + start", "self.epsilon"), None, OPTIMIZERS),
    ("recall and precision exchanged", "metrics:recall", swap("_share", 0, 1), None, METRICS),
    ("gradients of an input that is used twice", "estimator.graph:Plan.backward",
     replace("ops.total(known, gradient, ctx, tensor)", "gradient"), None, ARITHMETIC),
    ("check_gradients: one input for all", "core.gradcheck:_Check.gradients",
     replace("xs[number]", "xs[0]"), 1, GRADCHECK),
    ("Adam: steps off by one", "optimizers:Adam._numbers",
     replace("self.iterations + 1", "self.iterations + 2"), None, OPTIMIZERS),
    ("Adam: epsilon under another root", "optimizers:Adam._numbers", arithmetic("*", "right"),
     "self.epsilon", OPTIMIZERS),
    ("Adam: decay scaled", "optimizers:Adam._numbers", arithmetic("/", "left"), "self.weight_decay",
     OPTIMIZERS),
    ("a schedule one step early", "optimizers:step_decay.__call__", replace("step", "(step + 1)"),
     None, OPTIMIZERS),
    ("clipped to another norm", "optimizers:clip_by_global_norm",
     replace("max_norm / norm", "1 / norm"), None, OPTIMIZERS),
    ("a negative mean of squares is loaded", "optimizers:Optimizer.load_state_dict",
     condition(False), "fault", OPTIMIZERS),
    ("gradient of a tensor used twice not added", "estimator.graph:Plan.backward",
     condition(True), "known", GRAPH),
    ("two parameters of one name become one", "estimator.graph:Graph._share", condition(False),
     "own.name", f"{BAD_INPUT} -k parameters_of_one_name"),
    ("scale of the loss left out", "estimator.graph:Plan.backward", replace("scale", "1.0"), None,
     GRAPH),
    ("wrong limit", "initializers:glorot_uniform", replace("6", "3"), None, INITIALIZERS),
    ("swapped fans", "initializers:_fans",
     swap_items(0, 1), "taps", INITIALIZERS),
    ("rows are the predicted classes", "metrics:confusion_matrix",
     replace("counts.reshape(size, size)", "counts.reshape(size, size).T"), None, METRICS),
    # files, weights, checkpoints, and which weights are used
    ("a link to another file is opened", "core.files:open_regular", condition(True), None, FILES),
    ("a file with a second name is written", "core.files:_check", condition(False), "st_nlink",
     FILES),
    ("a half-written file stays", "core.files:replacing", drop("Expr"), "unlink", FILES),
    ("an error names the temporary file", "core.files:_naming",
     replace("str(path)", "error.filename"), None, FILES),
    ("the checksum is not compared", "core.npz:_members", condition(False), "_digest",
     CHECKPOINTS),
    ("bytes after the end are allowed", "core.npz:_members", condition(False),
     "_ends_as_it_says", f"{WEIGHTS} {CHECKPOINTS}"),
    ("more bytes are promised than there are", "core.npz:_members", condition(False),
     "is_plain", WEIGHTS),
    ("names and shapes are not compared", "core.weights:differences", replace("wanted", "found"),
     None, WEIGHTS),
    # Sequential.fit
    ("progress: a step that compiles counts for the speed", "estimator.progress:Display.__call__",
     compare("==", "!="), None, f"{PROGRESS} -k time_left"),
    ("progress: a look at validation rows is recorded", "estimator.session:TrainingSession._look",
     replace("None", "self._record"), 1, f"{PROGRESS} -k first_accuracy"),
    ("progress: shown beside minicnn's own log", "estimator.progress:_is_log_shown",
     returns("False"), None, f"{PROGRESS} -k shows_info"),
    ("fit: the rows held back are trained on", "estimator.supervised:split",
     replace("feed.only(rest)", "feed"), None, f"{FIT} -k held_back"),
    ("fit: a split that is not stratified", "estimator.supervised:split", condition(False), "ndim",
     f"{FIT} -k same_share"),
    ("fit: weights of other rows", "estimator.supervised:split",
     replace("np.asarray(weights)[rest]", "np.asarray(weights)[: len(rest)]"), None,
     f"{FIT} -k follow_the_rows"),
    ("fit: weights of rows left out", "estimator.supervised:_with_weights", condition(False),
     "own is not None", f"{FIT} -k weighted_by_rows"),
    ("fit: a softmax applied twice", "estimator.supervised:ends_in", returns("False"), None,
     f"{FIT} -k not_applied_twice"),
    ("fit: a patience of steps", "estimator.supervised:monitors",
     replace("early_stopping.patience * steps", "early_stopping.patience"), None,
     f"{FIT} -k best_weights"),
    ("fit: validation one step late", "estimator.supervised:_Validation.resume",
     replace("step % (self.timer.every_steps or 1)", "-1"), None, f"{FIT} -k once_an_epoch"),
    ("fit: a second one without the optimizer", "estimator.model:InPlace.leave",
     condition(False), None, f"{FIT} -k second_fit_goes_on"),
    ("fit: new start values go on", "sequential:Sequential.reset_parameters", drop("Assign"), None,
     f"{FIT} -k start_values"),
    ("fit: NaN stays in the model", "sequential:Sequential._train", drop("For"), None,
     f"{FIT} -k not_finite"),
    ("fit: no warning of replaced values", "sequential:Sequential._store", condition(False), "any(",
     f"{FIT} -k replaces"),
    ("fit: an iterator skips batches", "estimator.feeding:FunctionFeed.seek", condition(True),
     "skips", f"{FIT} -k iterator"),
    ("history: rows of a killed run stay", "estimator.history:History.cut", drop("Assign"), 0,
     f"{FIT} -k same_curve"),
    ("history: a mean of all steps", "estimator.history:HistoryHook.after_run", drop("Assign"), 0,
     f"{FIT} -k since_the_row_before"),
    ("a checkpoint is kept too few", "estimator.checkpoints:save",
     replace("paths[:-keep]", "paths[: 1 - keep]"), None, CHECKPOINTS),
    ("checkpoints of later steps push out the newest", "estimator.checkpoints:save",
     condition(True), "_step", CHECKPOINTS),
    ("the newest file counts, not the index", "estimator.checkpoints:_candidates",
     swap_items(0, 1), "last", CHECKPOINTS),
    ("a weight of NaN is restored", "estimator.checkpoints:load", condition(False),
     "fault", CHECKPOINTS),
    ("a step unlike the one in the file's name", "estimator.checkpoints:_check_meta",
     condition(False), "fullmatch", CHECKPOINTS),
    ("two fits in one folder", "estimator.checkpoints:_take",
     replace("fcntl.LOCK_EX", "fcntl.LOCK_SH"), None, CHECKPOINTS),
    ("a fit writes into a folder that it has lost", "estimator.checkpoints:_write",
     condition(False), None, CHECKPOINTS),
    ("a damaged file is named each time", "estimator.checkpoints:_first_good", condition(False),
     "damaged", f"{WHICH_WEIGHTS} {CHECKPOINTS}"),
    ("a changed file is not read again", "estimator.checkpoints:_first_good",
     replace("(path, now)", "(path, known.identity)"), None, WHICH_WEIGHTS),
    ("an older checkpoint replaces one that cannot be read now",
     "estimator.checkpoints:_first_good", drop("Raise"), None, CHECKPOINTS),
    ("a checkpoint's weights are not used", "estimator.model:Model._restore", drop("For"), None,
     WHICH_WEIGHTS),
    ("start values without the seed", "estimator.model:Model.trace",
     replace("self.seed", "0"), None, "tests/estimator/test_estimator.py"),
    ("a new checkpoint is not seen", "estimator.model:Models.latest", condition(False), "known",
     WHICH_WEIGHTS),
    ("a chosen file that was replaced", "estimator.model:Models.chosen",
     replace("(path, now)", "(path, at.identity)"), None, WHICH_WEIGHTS),
    # the start of a run, and changes of images
    ("a pattern that matches no name", "core.weights:by_patterns", drop("Raise"), None,
     STARTING),
    ("a checkpoint does not win over a warm start", "estimator.training:train", condition(True),
     "start", STARTING),
    ("all batches of an epoch are changed alike", "estimator.feeding:ArrayFeed.__iter__",
     replace("rows.start", "0"), None, AUGMENT),
    ("images are changed by their order", "datasets.augment:_maps",
     replace("mirror * sine", "sine"), None, AUGMENT),
    ("the edge is read beyond", "kernels.warp:_warp", replace("height - 1.0", "height - 0.0"), None,
     WARP),
    # files of other programs
    ("padding of the wrong sides", "export.onnx_reader:_padding",
     replace("given[:2]", "given[2:]"), None, ONNX_READER),
    ("rows of several images are taken for one", "export.onnx_reader:_File.row",
     replace("(None, *self._batch)", "(batch,)"), None, ONNX_READER),
    ("(N, C, H, W) is flattened as (N, H, W, C)", "export.onnx_reader:_reshape", drop("Expr"),
     None, ONNX_READER),
    ("branches of a block are exchanged", "export.onnx_reader:_residual",
     replace("block.layers[count:]", "shortcut.layers[count:]"), -1, ONNX_READER),
    # kernels
    ("padding above is not counted", "kernels.window:_slide_axis", replace("before + size", "size"),
     None, WINDOW),
    ("larger half of the padding first", "kernels.window:_slide_axis",
     replace("total // 2", "(total + 1) // 2"), None, WINDOW),
    ("one chunk too many", "kernels.threads:_Job.work", compare("<", "<="), None, THREADS),
    ("returns while workers compute", "kernels.threads:_Job.wait", condition(False), None,
     THREADS),
    ("ReLU loses NaN", "kernels.elementwise:_relu_gradient",
     replace("y[e] <= 0", "not y[e] > 0"), None, ELEMENTWISE),
    ("ReLU: gradient at zero", "kernels.elementwise:_relu_gradient", compare("<=", "<"), None,
     ELEMENTWISE),
    ("normal distribution: the other half", "kernels.elementwise:_gelu",
     replace("z < 0", "z > 0"), None, OPS),
    ("dropout: rows counted in the part", "kernels.elementwise:_dropout",
     replace("first_row + r", "r"), None, ELEMENTWISE),
    ("dropout: wrong scale", "kernels.elementwise:mask_of", arithmetic("/", "left"), None,
     ELEMENTWISE),
    ("sum of the last row alone", "kernels.elementwise:_sum_rows", plain(), None, ELEMENTWISE),
    ("sums of two blocks: the second alone", "kernels.elementwise:add_waiting", plain(), "to",
     f"{NUMBERS} -k many_rows"),
    ("sums of blocks in a chain, not a tree", "kernels.elementwise:add_waiting",
     operand("and", 1), None, f"{NUMBERS} -k million_rows"),
    ("code of every element type under one name", "kernels.cache:DiskCache._file",
     replace("kind", "b''"), None, f"{JIT} -k at_once"),
    ("damaged code is loaded", "kernels.cache:DiskCache.load_overload", condition(True), "_seal",
     CACHE),
    ("code that others can write is loaded", "kernels.cache:is_safe",
     replace("stat.S_IWOTH", "0"), None, CACHE),
    ("code of another user is loaded", "kernels.cache:is_safe", operand("and", 0), "owners",
     CACHE),
    ("SGD without decay", "kernels.update:_sgd", arithmetic("+", "left"), None, UPDATE),
    ("Nesterov: velocity not scaled", "kernels.update:_momentum",
     replace("slope + mu * v[e]", "slope + v[e]"), None, UPDATE),
    ("Adam: square left out", "kernels.update:_adam",
     replace("rest2 * g[e] * g[e]", "rest2 * g[e]"), None, UPDATE),
    ("depthwise: first column of the overlap", "kernels.window:overlap",
     replace("sw - 1 - right", "sw - right"), None, DEPTHWISE),
    ("depthwise: last column of the overlap", "kernels.window:overlap",
     replace("width - 1 - right", "width - 2 - right"), None, DEPTHWISE),
    ("depthwise: rows between the strides", "kernels.conv.depthwise:_list_taps",
     replace("at // stride if at % stride == 0 else -1", "at // stride"), None, DEPTHWISE),
    ("depthwise: bias of the first channels alone", "kernels.conv.depthwise:_write",
     argument("load_some", 1, "0"), 1, DEPTHWISE),
    ("depthwise: one tap of a row left out", "kernels.conv.depthwise:_write",
     replace("across[0]", "across[0] - 1"), None, DEPTHWISE),
    ("depthwise: gradient of the last row alone", "kernels.conv.depthwise:_add_sums",
     unwrap("add", 1), 0, DEPTHWISE),
    ("depthwise: one sum for all rows of an image", "kernels.conv.depthwise:_add_sums",
     argument("load_some", 2, "rest"), 0, DEPTHWISE),
    ("depthwise: past the end of the channels", "kernels.conv.depthwise:_load",
     condition(True), None, "tests/kernels/test_plain.py -k depthwise"),
    ("depthwise: filters of a channel not added in dx", "kernels.conv.depthwise:input_gradient",
     replace("repeated.reshape(*dx.shape, multiplier)",
             "repeated.reshape(*dx.shape, multiplier)[..., :1]"), None, DEPTHWISE),
    ("pooling: ties go to the last", "kernels.pooling:_take_larger", compare(">=", ">"), None,
     POOLING),
    ("pooling: NaN loses", "kernels.pooling:_take_larger", operand("or", 1), None, POOLING),
    ("pooling: overlapping gradients not added", "kernels.pooling:_add_where", plain(), None,
     POOLING),
    ("pooling: gradient added to what was there", "kernels.pooling:_backward", drop("Assign"),
     "dx[n]", POOLING),
    ("Winograd gradient: a block replaces the one before", "kernels.conv.winograd:_add_kernel",
     replace("add(load(taps, q * LANES), load_some(dw, q * tap, some))", "load(taps, q * LANES)"),
     None, WINOGRAD),
    ("Winograd gradient: only the first image of a chunk",
     "kernels.conv.winograd:_transform_gradients", replace("row + column == 0", "first + i == 0"),
     None, WINOGRAD),
    ("mean pooling: padding counts", "kernels.pooling:_numbers",
     replace("np.maximum(first, 0)", "first"), None, POOLING2D),
    ("mean pooling: elements not added", "kernels.pooling:_add", plain(), None, POOLING2D),
    ("normalization: a part of the pivot is lost", "kernels.normalize:_sums",
     replace("2.0 * sums[0, c]", "sums[0, c]"), None, NORMALIZATION),
    ("normalization: gradients without the mask", "kernels.normalize:_sum_block",
     condition(False), "masked", f"{FUSION} -k normalization"),
    ("normalization: a slope of zero", "kernels.normalize:_scale_rows",
     replace("fma(d, slope, rest)", "rest"), None, NORMALIZATION),
    ("product: last column of a panel left out", "kernels.gemm:pack",
     argument("load_some", 2, "n - j - 1"), None, GEMM),
    ("product: last column of a transposed panel left out", "kernels.gemm:pack",
     replace("j < n", "j < n - 1"), None, GEMM),
    ("product: sums do not continue after the first part", "kernels.gemm:multiply",
     drop("Assign"), "s_row, s_col =", CONV),
    ("product: last row of a tile is the one above", "kernels.simd:tile",
     argument("sub", 1, "_I64(2)"), "height", GEMM),
    ("product: a column too few", "kernels.simd:tile.places",
     replace("width", "builder.sub(width, _I64(1))"), None, GEMM),
    ("implicit product: missing bias", "kernels.conv.implicit:_forward",
     replace("pointer(b, f)", "pointer(b, 0)"), None, FAST),
    ("implicit product: strides swapped", "kernels.conv.implicit:_find_offsets",
     replace("p % ow * sw", "p % ow * sh"), None, FAST),
    ("implicit product: dilations swapped", "kernels.conv.implicit:_find_offsets",
     replace("t * run % kw * dw", "t * run % kw * dh"), None, FAST),
    ("implicit product: the first image for all of a band", "kernels.conv.implicit:_find_offsets",
     replace("p // (rows * ow) * high", "0"), None, FAST),
    ("implicit product: reads beyond the image", "kernels.conv.implicit:_bands",
     replace("high <= window.height", "True"), None, FAST),
    ("implicit product: maximum of a column", "kernels.conv.shared:write_maxima",
     replace("pointer(above, row)", "pointer(above, pixel)"), None, FAST),
    ("implicit product: gradient past ReLU", "kernels.conv.implicit:_pack_gradient",
     unwrap("where_positive", 1), None, FAST),
    ("implicit product: bias gradient of the last position",
     "kernels.conv.implicit:_pack_gradient", unwrap("add", 1), None, FAST),
    ("squares are not turned", "kernels.simd:transpose", replace("j & size", "0"), None, GEMM),
    ("lists: the last row of a band is left out", "kernels.conv.pooled:_gradients",
     replace("count * columns", "count * columns - columns"), None, FAST),
    ("lists: the sums of all bands in order", "kernels.conv.pooled:gradients",
     replace("max(1, _BANDS // max(bands, 1))", "n"), None, f"{NUMBERS} -k many_images"),
    ("lists: bands by the width of a vector", "kernels.conv.pooled:_layout",
     replace("_CHANNELS", "PANEL"), None, f"{FAST} -k does_not_depend_on_the_width"),
    ("lists: the first position of a block for all", "kernels.conv.pooled:_list_by_position",
     argument("where_tagged", 2, "0"), None, FAST),
    ("lists: zeros are items", "kernels.simd:compress", replace("'!='", "'=='"), None,
     FAST),
    ("lists: the last row is in no block", "kernels.simd:_blocks_of_width",
     replace("row < rows", "row < rows - 1"), 0, f"{FAST} -k each_vector_once"),
    ("lists: blocks from the left", "kernels.simd:_blocks_of_width", unwrap("reversed"), None,
     f"{FAST} -k from_the_right"),
    ("dense lists: wrong row", "kernels.dense.lists:_find_nonzero", replace("i * row", "0"), None,
     DENSE_LISTS),
    ("two roundings for one", "kernels.simd:fma", returns("builder.fadd(builder.fmul(x, y), z)"),
     None, GEMM),
    ("the last lanes are not written", "kernels.simd:_first_lanes",
     argument("_repeat", 1, "builder.sub(count, _I64(1))"), None, FAST),
    ("the last lanes of a store are not written", "kernels.simd:_write",
     argument("_first_lanes", 1, "builder.sub(count, _I64(1))"), None, FAST),
    ("fused ReLU loses NaN", "kernels.simd:where_positive",
     replace("builder.fcmp_unordered", "builder.fcmp_ordered"), None, FAST),
    ("fused pooling: ties go to the last", "kernels.simd:largest_of_four.larger",
     argument("fcmp_ordered", 0, "'>='"), None, FAST),
    ("fused pooling: NaN loses", "kernels.simd:largest_of_four.larger",
     unwrap("or_"), None, FAST),
    ("fused pooling: outputs of zero have a maximum", "kernels.simd:largest_of_four",
     replace("ZEROED", "0"), None, FAST),
    ("fused pooling: the gradient of zero passes", "kernels.simd:largest_of_four",
     argument("fcmp_ordered", 0, "'<'"), "value", FAST),
    ("dense: missing bias for few rows", "kernels.dense.dense:_product_in_place",
     replace("pointer(b, panels)", "pointer(b, 0)"), None, GEMM),
    ("dense: one row of w left out", "kernels.dense.dense:_product_in_place",
     replace("min(_SLAB, d - p)", "min(_SLAB - 1, d - p)"), None, GEMM),
    ("dense: the first slab of x for all", "kernels.dense.dense:_product_in_place",
     replace("pointer(x, p)", "pointer(x, 0)"), None, GEMM),
    ("inference: a user's op runs once", "inference:_is_repeatable",
     replace("part.repeatable", "True"), None, f"{INFERENCE} -k those_of_predict"),
    ("inference: a copy keeps its values", "inference:_is_repeatable",
     replace("array.flags.c_contiguous", "True"), None, f"{INFERENCE} -k not_in_c_order"),
    ("inference: statistics of the first batch", "inference:_is_repeatable",
     replace("'training'", "'trained'"), None, f"{INFERENCE} -k statistics_of_the_batch"),
    ("inference: outputs are written again", "inference:_Run.outputs",
     replace("output.copy()", "output"), None, f"{INFERENCE} -k of_their_own"),
    ("inference: weights of the model itself", "inference:program_of",
     replace("copy.deepcopy(model)", "model"), None, f"{INFERENCE} -k snapshot"),
    ("inference: filters are packed for each number of rows", "core.context:Context.pack",
     replace("layer not in self.packed", "True"), None, f"{INFERENCE} -k packed_once"),
    ("inference: filters are packed at every call", "inference:_Run.__init__",
     unwrap("any"), None, f"{INFERENCE} -k depends_on_the_inputs"),
    ("inference: buffers that are in use are forgotten", "inference:InferenceModel._outputs",
     replace("self._runs.move_to_end(rows)", "None"), None, f"{INFERENCE} -k few_numbers_of_rows"),
    ("inference: tiny kernels lose their bits in float16", "inference:_halve",
     replace("limits.smallest_normal", "0"), None, f"{INFERENCE} -k out_of_the_range"),
    ("inference: an Estimator's own kernels become float16", "inference:with_kernels",
     replace("copy.deepcopy(model._program)", "model._program"), None,
     f"{INFERENCE} -k estimator_with_float16"),
    ("recording: a call begins too early", "kernels.recording:_walk",
     replace("peek(done) < table[call, 1]", "False"), None, f"{RECORDING} -k before_has_ended"),
    ("recording: little work wakes the workers", "kernels.recording:Recording.run",
     replace("min(self._seconds) > _LEAST_SECONDS", "True"), None, f"{RECORDING} -k little_work"),
    ("recording: wrong size of an array", "kernels.recording:_words",
     replace("value.size", "value.size // 2"), None, RECORDING),
    ("repeated calls: the input of the first one", "kernels.recording:Repeatable.__call__",
     drop("Assign"), "self._x[...] = x", REPEATED),
    ("repeated calls: steps of NumPy are left out", "kernels.threads:step", condition(False), None,
     REPEATED),
    ("repeated calls: a choice is made once", "kernels.threads:depends_on_values",
     condition(False), None, REPEATED),
    ("repeated calls: an attribute is set", "layers.repeated:Repeated._must_call",
     replace("part._changes != changes", "False"), None, REPEATED),
    ("repeated calls: of an earlier pass", "layers.repeated:Repeated.forward",
     drop("Expr"), "ctx._slots.pop(self, None)", REPEATED),
    ("optimizers: another schedule is not seen", "optimizers:Optimizer._update_all",
     replace("self._numbers(rate)", "self._numbers(0.1)"), None, OPTIMIZERS),
    ("recording: workers help one of many callers", "kernels.threads:together",
     replace("workers.is_wanted", "False"), None,
     f"{RECORDING} -k leave_the_workers"),
    ("recording: the pool is never released", "kernels.threads:together",
     condition(False), -1, THREADS),
    ("recording: jobs wait for a worker that is late", "kernels.threads:_Workers.call",
     condition(True), None, f"{THREADS} -k late"),
    ("inference: a run is kept after an exception", "inference:InferenceModel._outputs",
     replace("runs.pop()", "runs[-1]"), None, f"{INFERENCE} -k interrupted_call"),
    ("Winograd: the first filters in every chunk", "kernels.conv.winograd:_forward",
     replace("chunk % parts * some", "0"), None, f"{WINOGRAD} -k few_images"),
    ("Winograd: the image of the chunk before", "kernels.conv.winograd:_transform_inputs",
     operand("or", 1), None, f"{WINOGRAD} -k few_images"),
    ("dense: the first packed panel for all columns", "kernels.dense.dense:_forward",
     replace("q * d", "j * d"), None, GEMM),
    ("dense: ReLU loses NaN", "kernels.dense.dense:_forward",
     replace("row[q] <= 0", "not row[q] > 0"), None, GEMM),
    ("dense: mask of the first element for every row", "kernels.dense.dense:_forward",
     replace("i % per_row * u + j", "j"), None, FUSED_DROPOUT),
    ("dense: a gradient in one sum", "kernels.dense.dense:kernel_gradient",
     argument("parallel_for", 7, "max(n, 1)"), None, f"{NUMBERS} -k many_rows"),
    ("dense: gradient of the other product", "kernels.dense.dense:input_gradient",
     argument("parallel_for", 5, "(u, 1)"), None, GEMM),
    ("columns: taps swapped", "kernels.conv.im2col:_columns", replace("left", "top"), -1, CONV),
    ("columns: off by one at the right edge", "kernels.conv.im2col:_columns",
     replace("width - ix", "width - ix - 1"), None, CONV),
    ("columns: overlapping gradients not added", "kernels.conv.im2col:_columns", plain(), None,
     CONV),
    ("columns: wrong bias", "kernels.conv.im2col:_forward",
     argument("multiply", 4, "pointer(packed, 0)"), None, CONV),
    ("columns: no ReLU", "kernels.conv.conv:forward", drop("Expr"), "elementwise.relu", FAST),
    ("columns: swapped axes of w", "kernels.conv.im2col:_input_gradient", swap("pack", 1, 2), None,
     CONV),
    ("columns: a block of positions counted twice", "kernels.conv.im2col:_kernel_gradient",
     argument("block_of_rows", 12, "count + 1"), None, CONV),
    ("convolution: filter not turned", "kernels.conv.shared:pack_filters",
     replace("taps - 1 - tap", "tap"), None, FAST),
    ("convolution: channels and filters not exchanged", "kernels.conv.shared:pack_filters",
     swap("pack", 1, 2), 0, FAST),
    ("convolution: padding of the forward pass", "kernels.conv.conv:input_gradient",
     argument("_replace", "top", "window.top"), None, FAST),
    ("convolution: the gradient of zero passes", "kernels.conv.conv:forward",
     compare("<=", "<"), None, FAST),
    ("convolution: gradients that ReLU stops pass", "kernels.conv.conv:_unmask",
     unwrap("where", 2), None, FAST),
    ("convolution: ReLU's gradient is not formed", "kernels.conv.conv:kernel_gradient",
     drop("Assign"), "dy = dz", FAST),
    ("implicit: rows of the window at one place", "kernels.conv.implicit:_find_offsets",
     replace("t * run // kw * dh * wide", "0"), None, FAST),
    ("implicit: the first row for every band", "kernels.conv.implicit:_rows_of_images",
     replace("first * sh - top", "0 - top"), None, FAST),
    ("implicit: rows outside of the image are not zero", "kernels.conv.implicit:_rows_of_images",
     condition(True), "height", FAST),
    ("fused convolution: missing bias", "kernels.conv.winograd:_emit", unwrap("add"), None, FAST),
    ("padded image: one row too few", "kernels.conv.shared:copy_image",
     replace("range(height)", "range(height - 1)"), None, FAST),
    ("Winograd: the wrong points", "kernels.conv.winograd:matrices",
     replace("_POINTS[size]", "[p + 1 for p in _POINTS[size]]"), None, FAST),
    ("Winograd: the points of other powers", "kernels.conv.winograd:matrices",
     replace("range(_OUT)", "range(1, _OUT + 1)"), None, FAST),
    ("Winograd: sums and differences of both points twice", "kernels.conv.winograd:_factors",
     replace("inverse @ inputs", "inputs"), None, WINOGRAD),
    ("Winograd: residue in blank patches", "kernels.conv.winograd:_set_blanks",
     replace("bits", "False"), 0, FAST),
    ("Winograd: blank patches too narrow", "kernels.conv.winograd:_spread",
     replace("size - 1", "size - 2"), None, FAST),
    ("Winograd: blank patches too low", "kernels.conv.winograd:_find_blanks",
     replace("_spread(pointer(live, 0), live.size, wide, size)",
             "_spread(pointer(live, 0), live.size, 1, size)"), None, FAST),
    ("Winograd: only the first tile's bias gradient", "kernels.conv.winograd:_transform_gradients",
     replace("add(load_some(db, f, filters - f), total)", "total"), None, WINOGRAD),
    ("Winograd: the first image for all", "kernels.conv.winograd:_transform_inputs",
     replace("row + column == 0", "False"), None, FAST),
    ("Winograd: swapped axes of a tile", "kernels.conv.winograd:_tile", swap_items(1, 2, 3), None,
     FAST),
    ("lists: the first filter's weights for all", "kernels.conv.pooled:_gradients",
     replace("f * run", "0"), None, FAST),
    ("lists: the first rows for every band", "kernels.conv.pooled:_make_lists",
     replace("first + p // columns", "p // columns"), None, FAST),
    ("lists: rows of the window at one place", "kernels.conv.pooled:_input_gradient",
     replace("block * high + 2 * first + y + u", "block * high + 2 * first + y"), None, FAST),
    ("lists: padding of the other axis", "kernels.conv.pooled:_fill_padded", replace("left", "top"),
     None, FAST),
    ("lists: rows of the result at one place", "kernels.gather:gather",
     replace("r * target_row", "0"), None, FAST),
    ("lists: positions after the last are not zero", "kernels.conv.pooled:_make_lists",
     drop("Expr"), "clear", FAST),
    ("lists: NaN is left out", "kernels.simd:compress",
     replace("builder.fcmp_unordered", "builder.fcmp_ordered"), None, FAST),
    ("dense lists: wrong length", "kernels.dense.lists:_list_nonzero", replace("end", "end - 1"),
     -1, DENSE_LISTS),
    ("dense lists: a block of rows left out", "kernels.dense.lists:_gradients",
     argument("range", 0, "1"), "unit_bounds.shape[2]", f"{NUMBERS} -k many_rows"),
    ("dense lists: zeros are not skipped", "kernels.dense.lists:gradients", returns("True"),
     "False", DENSE_LISTS),
]


def mutated(mutation):
    """Return the path of the file that a row changes, and its text with the change."""
    what, symbol, operator, which, _ = mutation
    try:
        return path_of(symbol), changed(symbol, operator, which)
    except NotApplicableError as error:
        raise SystemExit(f"{what!r} does not apply.\n{error}") from None


def title(mutation):
    return f"{mutation[1]}: {mutation[0]}"


def run(tests, copy, cache, threads):
    """Run tests in the copy; return whether one failed, and the end of pytest's output."""
    environment = {**harness.environment(threads), "HYPOTHESIS_PROFILE": "ci",
                   "NUMBA_CACHE_DIR": str(cache), "PYTHONDONTWRITEBYTECODE": "1",
                   "PYTHONPATH": str(copy)}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    try:
        done = subprocess.run(
            [*command, *shlex.split(tests)], cwd=copy, env=environment, timeout=DEADLINE,
            capture_output=True, text=True,
        )
    except subprocess.TimeoutExpired:
        return True, "hung"
    if done.returncode not in (0, 1) and done.returncode > 0:  # below zero: a signal ended it
        raise SystemExit(f"{tests} did not run:\n{done.stdout}{done.stderr}")
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return done.returncode != 0, failed[-1] if failed else done.stdout[-2000:]


def measure(mutations, threads):
    """Return for each change the test that noticed it and the seconds it took."""
    results = []
    with tempfile.TemporaryDirectory() as root:
        copy, cache = Path(root) / "copy", Path(root) / "compiled"
        for part in ("minicnn", "tests", "examples", "benchmarks", "pyproject.toml"):
            place = ROOT / part
            (shutil.copytree if place.is_dir() else shutil.copy)(
                place, copy / part if place.is_dir() else copy)
        for tests in dict.fromkeys(mutation[4] for mutation in mutations):
            failed, end = run(tests, copy, cache, threads)
            if failed:
                raise SystemExit(f"{tests} fails without any change:\n{end}")
        for mutation in mutations:
            start = time.perf_counter()
            original, text = mutated(mutation)
            path = copy / original.relative_to(ROOT)
            path.write_text(text, "utf-8")
            # Kernels are compiled into another folder, so that the next change finds the good ones.
            is_kernel = mutation[1].startswith("kernels.")
            own = Path(root) / "changed" if is_kernel else cache
            noticed, by = run(mutation[4], copy, own, threads)
            shutil.copy(original, path)
            shutil.rmtree(Path(root) / "changed", ignore_errors=True)
            results.append({"change": title(mutation), "noticed": noticed, "by": by,
                            "seconds": time.perf_counter() - start})
            by = re.sub(r"^(FAILED|ERROR) | - .*", "", by) if noticed else "SURVIVED"
            print(f"{results[-1]['seconds']:4.0f} s  {results[-1]['change']:<70} {by}", flush=True)
    return results


def main():
    arguments = harness.parser(__doc__)
    arguments.add_argument("--only", default="", metavar="TEXT",
                           help="only changes whose symbol or description contains TEXT")
    args = harness.parse(arguments)
    for mutation in MUTATIONS:
        mutated(mutation)  # an error if a row does not apply
    chosen = [mutation for mutation in MUTATIONS if args.only in title(mutation)]
    if args.smoke:
        chosen = [mutation for mutation in chosen if mutation[1].startswith("ops:")][:2]
    results = measure(chosen, args.threads)
    survivors = [result["change"] for result in results if not result["noticed"]]
    print(f"\n{len(results)} changes, {len(results) - len(survivors)} noticed")
    harness.report(args, results)
    if survivors:
        raise SystemExit("\n".join(["No test noticed:", *survivors]))


if __name__ == "__main__":
    main()
