# %% [markdown]
# # From pixels to gradient
#
# How a convolutional network works, in ten steps. Each step is done by hand with a few lines of
# NumPy, then with the library, and the results are compared. The code checks each claim of the
# text, and stops if a claim is false.
#
# Run it as a program, `python examples/walkthrough.py`, or cell by cell: `walkthrough.ipynb` is the
# same as a notebook, with the results and pictures. You need to know Python, NumPy arrays and
# partial derivatives.
#
# The names are those of the mathematics: input x, weights w, bias b, output y. dy is the gradient
# of the loss with respect to y and has the shape of y; likewise dx, dw and db. Images are arrays
# (N, H, W, C): image, row, column, channel.

# %%
"""From pixels to gradient: build a convolutional network by hand and with minicnn, and compare.

    python examples/walkthrough.py
    python examples/walkthrough.py --output pictures

It takes some seconds, and more the first time on a machine, to compile the kernels. The pictures
need matplotlib (``pip install -e ".[plot]"``); without it only they are missing.
"""

import argparse
import io
import sys
import tempfile
from pathlib import Path

import numpy as np

import minicnn as mc

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("--output", help="folder for the pictures (default: a temporary one)")
in_notebook = "ipykernel" in sys.modules  # the command line is the notebook's
args = parser.parse_args([] if in_notebook else None)
print("The first run on a machine compiles the kernels, which takes some seconds.\n")

# %% [markdown]
# Two helpers: `claim` stops if a claim is false, and `close` compares rounded numbers. float32 has
# seven digits, and sums that are added in another order differ in the last one.

# %%
claims = []


def claim(text, holds):
    """Print a claim that holds; stop if it does not."""
    if not holds:
        raise AssertionError(f"this should hold, but does not: {text}")
    claims.append(text)
    print(f"  [holds] {text}")


def close(a, b, limit=1e-5):
    """Return whether two arrays have the same shape and are equal up to rounding in float32."""
    a, b = np.asarray(a), np.asarray(b)
    return a.shape == b.shape and np.abs(a - b).max() <= limit * max(1, np.abs(b).max())


# %% [markdown]
# ## 1. A digit is a grid of numbers
#
# MNIST has 70,000 grey images of 28 x 28 pixels: 0 is paper, 1 is ink. The label is the digit.
# A network gets nothing else: no strokes, no shapes, only 784 numbers.

# %%
print("1. A digit is a grid of numbers")
mnist = mc.datasets.load_dataset("mnist", reshape=False)
x, label = mnist.train.images[:1], mnist.train.labels[0]  # x (1, 28, 28, 1): a batch of one image
for row in x[0, 4:24, 2:24, 0]:
    print("   ", "".join(2 * " .:-=+*#%@"[int(9 * pixel)] for pixel in row))
claim(f"one image labelled {label}, {x.dtype}, of shape {x.shape}", x.shape == (1, 28, 28, 1))
claim("every pixel lies in [0, 1]", x.min() >= 0 and x.max() <= 1)

# %% [markdown]
# ## 2. A convolution, by hand
#
# A *filter* w is a small grid of weights. Its response to a patch of the image is one number, the
# sum of products. The filter slides over the image and gives a response at each position (i, j):
#
# $$ y_{ij} = b + \sum_u \sum_v x_{i+u,\,j+v} \, w_{uv} $$
#
# (In mathematics this is a cross-correlation; a convolution would first rotate the filter by 180
# degrees. Deep learning calls both convolution, since the weights are learnt either way.)
#
# The response of this filter is large where paper on the left meets ink on the right: a vertical
# edge.

# %%
print("\n2. A convolution, by hand")
w = np.array([[-1, -1, 0, 1, 1]] * 5, np.float32)  # the same row five times
b = np.float32(0.5)
i, j = 18, 15  # at the left side of the stem
patch = x[0, i : i + 5, j : j + 5, 0]
print(np.round(patch, 1))  # the pixels there

by_hand = b
for u in range(5):
    for v in range(5):
        by_hand += patch[u, v] * w[u, v]
print(f"  the response of the filter to this patch: {by_hand:.4f}")

# %% [markdown]
# The library's layer has many filters in one array (height, width, channels, filters). `build`
# creates it; write into its `value` to set other weights. `forward` saves what `backward` needs in
# a `Context`.

# %%
conv = mc.layers.Conv2D(filters=1, kernel_size=5)
print("  shape of its output:", conv.build((None, 28, 28, 1), rng=0))
conv.kernel.value[:, :, 0, 0] = w
conv.bias.value[0] = b
y = conv.forward(x, mc.Context())
claim("Conv2D gives the same number at that position", close(y[0, i, j, 0], by_hand))
claim("no position on this digit has a larger response",
      np.unravel_index(y.argmax(), y.shape) == (0, i, j, 0))
claim("a filter of 5 fits 28 - 5 + 1 = 24 times along each axis", y.shape == (1, 24, 24, 1))

# %% [markdown]
# ## 3. The same convolution as one matrix product
#
# Write each patch as a row of a matrix, and each filter as a column of another. Then each response
# of each filter is one element of their product. The first matrix is called *im2col*, image to
# columns. This is the matrix of a 3 x 3 image and a window of 2 x 2:

# %%
print("\n3. The same convolution as one matrix product")


def im2col(image, size):
    """Return the patches of an image (H, W) as rows (positions, size * size)."""
    patches = np.lib.stride_tricks.sliding_window_view(image, (size, size))
    return patches.reshape(-1, size * size)


small = np.arange(1, 10).reshape(3, 3)
print(small, "becomes", im2col(small, 2), sep="\n")
claim("one row for each position: the last is the lower right corner",
      im2col(small, 2)[-1].tolist() == [5, 6, 8, 9])

# %% [markdown]
# An inner element is in as many rows as a filter has weights, so the matrix is much larger than
# the image. Therefore `minicnn/kernels/conv/im2col.py` creates it for a block of positions at a
# time, and `minicnn/kernels/gemm.py` multiplies the block while it is in the cache.

# %%
filters = mc.layers.Conv2D(filters=4, kernel_size=5)
filters.build((None, 28, 28, 1), rng=0)
columns = im2col(x[0, :, :, 0], 5)  # (24 * 24, 25)
claim("the columns of a 5 x 5 filter are 18 times the image", columns.size // x.size == 18)
matrix = filters.kernel.value.reshape(25, 4)  # one filter a column

ctx = mc.Context()
y = filters.forward(x, ctx)
product = columns @ matrix + filters.bias.value
claim(f"columns {columns.shape} times kernel {matrix.shape}, plus bias, is the convolution",
      close(product.reshape(1, 24, 24, 4), y))

# %% [markdown]
# The product also gives the backward pass. With y = columns w + b, a small change v of w changes y
# by columns v, and so the loss by <dy, columns v> = <columns' dy, v> (a prime is the transpose, <,>
# the sum of products). The factor of v is the gradient. In the same way for b and the columns:
#
#     dw = columns' dy        db = 1' dy        dcolumns = dy w'
#
# An element of x that was copied into several rows gets the sum of their gradients: columns to
# image. These are the three lines at the top of `minicnn/kernels/conv/conv.py`.

# %%
dy = np.random.default_rng(0).normal(size=y.shape).astype(np.float32)
dx = filters.backward(dy, ctx)  # the library; it also writes kernel.grad and bias.grad

dy_rows = dy.reshape(-1, 4)
dcolumns = dy_rows @ matrix.T
dx_by_hand = np.zeros((28, 28), np.float32)
for tap in range(25):
    u, v = divmod(tap, 5)
    dx_by_hand[u : u + 24, v : v + 24] += dcolumns[:, tap].reshape(24, 24)

claim("dw = columns' dy", close((columns.T @ dy_rows).reshape(5, 5, 1, 4), filters.kernel.grad))
claim("db = the sum of dy over all positions", close(dy_rows.sum(axis=0), filters.bias.grad))
claim("dx = the rows of dy w', each added where it was copied from",
      close(dx_by_hand, dx[0, :, :, 0]))

# %% [markdown]
# ## 4. Max pooling, and where its gradient goes
#
# Max pooling keeps the largest element of each window: that a feature was found, and only roughly
# where. A small change of any other element changes nothing, so its gradient is 0. The gradient of
# an output goes to the largest element of its window alone (among equals, to the first).

# %%
print("\n4. Max pooling, and where its gradient goes")
square = np.array([[1, 5, 2, 0],
                   [3, 4, 8, 7],
                   [0, 2, 1, 1],
                   [9, 6, 3, 2]], np.float32)
pool, ctx = mc.layers.MaxPooling2D(2), mc.Context()
pool.build((None, 4, 4, 1), rng=0)
maxima = pool.forward(square.reshape(1, 4, 4, 1), ctx)[0, :, :, 0]
dx = pool.backward(np.array([[10, 20], [30, 40]], np.float32).reshape(1, 2, 2, 1), ctx)
print(dx[0, :, :, 0])
claim("the maxima of the four blocks are 5, 8, 9, 3", maxima.tolist() == [[5, 8], [9, 3]])
claim("10, 20, 30, 40 go to the places of 5, 8, 9, 3, and nothing elsewhere",
      dx[0, :, :, 0].tolist() == [[0, 10, 0, 0], [0, 0, 20, 0], [0, 0, 0, 0], [30, 0, 40, 0]])
pool.forward(np.ones((1, 4, 4, 1), np.float32), ctx)
dx = pool.backward(np.ones((1, 2, 2, 1), np.float32), ctx)
claim("among four equals the first gets all", dx[0, :2, :2, 0].tolist() == [[1, 0], [0, 0]])

# %% [markdown]
# Windows may overlap. An element that is the largest in several windows gets the sum of their
# gradients: the chain rule adds over all paths from an input to the loss.

# %%
overlapping, ctx = mc.layers.MaxPooling2D(2, strides=1), mc.Context()
overlapping.build((None, 4, 4, 1), rng=0)
overlapping.forward(square.reshape(1, 4, 4, 1), ctx)
dx = overlapping.backward(np.ones((1, 3, 3, 1), np.float32), ctx)
claim("with stride 1, the 8 is the maximum of four windows: 1 from each", dx[0, 1, 2, 0] == 4)
claim("no gradient is lost: nine windows, a sum of 9", dx.sum() == 9)

# %% [markdown]
# ## 5. The loss: softmax cross-entropy
#
# The last layer gives one number z (a *logit*) for each class. Softmax turns them into
# probabilities, and the loss is the negative logarithm of the true class's probability (y is 1 at
# the true class and 0 elsewhere):
#
# $$ p_k = \frac{e^{z_k}}{\sum_l e^{z_l}} \qquad L = -\sum_k y_k \log p_k $$
#
# Write $L = -\sum_k y_k z_k + \log \sum_l e^{z_l}$ and differentiate by $z_k$. The gradient is the
# prediction minus the truth:
#
# $$ \frac{\partial L}{\partial z_k} = p_k - y_k $$

# %%
print("\n5. The loss: softmax cross-entropy")
z = np.array([[2.0, 1.0, -1.0]])
truth = np.array([[0.0, 1.0, 0.0]])
p = np.exp(z) / np.exp(z).sum()
loss, dz = mc.losses.softmax_cross_entropy_with_grad(labels=truth, logits=z)
print(f"  p {p[0].round(3)}   loss {loss:.4f}   p - y {(p - truth)[0].round(3)}")
claim("the loss is -log p of the true class", close(loss, -np.log(p[0, 1])))
claim("its gradient is p - y", close(dz, p - truth))
claim("the gradient sums to 0, as the probabilities sum to 1", abs(dz.sum()) < 1e-12)
_, halves = mc.losses.softmax_cross_entropy_with_grad(np.repeat(truth, 2, 0), np.repeat(z, 2, 0))
claim("the loss of a batch is the mean over its rows, so each row gets (p - y) / N",
      close(halves, np.repeat(p - truth, 2, 0) / 2))

# %% [markdown]
# ## 6. Check a gradient with differences
#
# A derivative is a limit of differences. So any gradient can be checked without knowing how it was
# computed: change one weight by e in both directions and compare the losses,
#
# $$ \frac{L(w + e) - L(w - e)}{2e} = \frac{\partial L}{\partial w} + O(e^2) $$
#
# With a large e the error is the curvature of the loss; with a small one it is rounding, as two
# nearly equal numbers are subtracted. In float64 a good e is around 1e-5.

# %%
print("\n6. Check a gradient with differences")
rng = np.random.default_rng(6)
tiny = mc.Sequential([
    mc.layers.Conv2D(2, 3, activation="tanh"), mc.layers.MaxPooling2D(2),
    mc.layers.Flatten(), mc.layers.Dense(3),
])
tiny.build((None, 8, 8, 1), rng=rng, dtype=np.float64)
images, labels = rng.normal(size=(4, 8, 8, 1)), np.array([0, 1, 2, 1])


def loss_and_backward(model, images, labels):
    """Run forward and backward, which sets each parameter's `grad`; return the loss."""
    ctx = mc.Context(training=True)
    logits = model.forward(images, ctx)
    loss, dlogits = mc.losses.softmax_cross_entropy_with_grad(labels=labels, logits=logits)
    model.backward(dlogits, ctx, need_dx=False)  # the images themselves need no gradient
    return loss


loss_and_backward(tiny, images, labels)
kernel, entry = tiny.layers[0].kernel, (1, 2, 0, 0)
analytic, start = kernel.grad[entry], kernel.value[entry]

# %% [markdown]
# `analytic` is the gradient of one weight in the first layer from the backward pass, through the
# loss, the dense layer, the pooling and the tanh. Now the same by differences:

# %%
errors = {}
for e in (1e-2, 1e-3, 1e-5, 1e-11):
    kernel.value[entry] = start + e
    above = loss_and_backward(tiny, images, labels)
    kernel.value[entry] = start - e
    below = loss_and_backward(tiny, images, labels)
    numeric = (above - below) / (2 * e)
    errors[e] = abs(numeric - analytic)
    print(f"  e = {e:<5.0e}  differences {numeric:+.11f}  backward {analytic:+.11f}")
kernel.value[entry] = start
claim("with e = 1e-5 they agree to nine decimal places", errors[1e-5] < 1e-9)
claim("a tenth of e gives a hundredth of the error", 80 < errors[1e-2] / errors[1e-3] < 120)
claim("until rounding takes over", errors[1e-11] > errors[1e-5])

# %% [markdown]
# `mc.check_gradients` does this for the inputs and every parameter of any layer, for single entries
# and in random directions. To see that it finds mistakes, here is a layer with one that training
# hides: its bias learns at half the speed, and the network still trains.

# %%
class Careless(mc.layers.Dense):
    """A dense layer that forgets half of its bias' gradient."""

    def backward(self, dy, ctx, need_dx=True):
        dx = super().backward(dy, ctx, need_dx)
        self.bias.grad[...] *= 0.5
        return dx


right = mc.check_gradients(tiny, (4, 8, 8, 1))
wrong = mc.check_gradients(Careless(3), (4, 5))
print("", right, wrong, sep="\n  ")
claim("every gradient of the tiny network is right", right.ok)
claim("the mistake is found, and in the bias alone",
      {error.array for error in wrong.errors} == {"careless/bias"})

# %% [markdown]
# A function of several arrays is checked in the same way. Derive it from `mc.Op`: `forward` gets
# all inputs, and `backward` returns one gradient for each of them. This one multiplies each number
# of a row a with each of a row b. The chain rule adds over all outputs that an input is used for:
#
# $$ y_{ij} = a_i b_j \qquad \frac{\partial L}{\partial a_i} = \sum_j dy_{ij} \, b_j
# \qquad \frac{\partial L}{\partial b_j} = \sum_i dy_{ij} \, a_i $$

# %%
class OuterProduct(mc.Op):
    """y = a b', the products of all pairs of numbers of two rows."""

    def build(self, input_shape, rng, dtype=np.float32):
        (_, rows), (_, columns) = input_shape
        return (None, rows, columns)

    def forward(self, a, b, ctx):
        ctx[self] = a, b
        return a[:, :, None] * b[:, None, :]

    def backward(self, dy, ctx, need_dx=True):
        a, b = ctx[self]
        return (dy * b[:, None, :]).sum(axis=2), (dy * a[:, :, None]).sum(axis=1)


products = OuterProduct()(np.array([[1.0, 2.0]]), np.array([[10.0, 20.0, 30.0]]))
print(f"  (1, 2) times (10, 20, 30) is {products[0].tolist()}")
claim("the gradients of an op of two inputs are right",
      mc.check_gradients(OuterProduct(), [(4, 2), (4, 3)]).ok)

# %% [markdown]
# ## 7. Training is this, many times
#
# Take a batch of images, run forward and backward, and move every weight a little against its
# gradient: *stochastic gradient descent*. This is the complete loop. `mc.optimizers.SGD` takes the
# same step, and adds momentum and schedules.

# %%
print("\n7. Training is this, many times")


def train(model, steps, rate=0.1):
    """Train a model on batches of 100 images, and return the loss of each step."""
    data = mc.datasets.Dataset(mnist.train.images, mnist.train.labels, seed=0)
    losses = []
    for _ in range(steps):
        losses.append(loss_and_backward(model, *data.next_batch(100)))
        for parameter in model.parameters:
            parameter.value[...] -= rate * parameter.grad
    return losses


def accuracy(model):
    """Return the share of the test images whose largest logit is at the true class."""
    return mc.metrics.accuracy(mnist.test.labels, model.predict(mnist.test.images).argmax(axis=1))


before = kernel.value.copy()
mc.optimizers.SGD(0.1).step(tiny.parameters)
claim("SGD(0.1) subtracts 0.1 times the gradient from a weight",
      close(kernel.value, before - 0.1 * kernel.grad, 1e-15))

# %% [markdown]
# Our network has eight filters of 5 x 5, ReLU (which sets negative numbers to 0), pooling, and a
# dense layer from the remaining 12 * 12 * 8 numbers to ten logits. Before training it guesses, and
# the loss of guessing among ten classes is log 10 = 2.303.

# %%
model = mc.Sequential([
    mc.layers.Conv2D(8, 5, activation="relu"), mc.layers.MaxPooling2D(2),
    mc.layers.Flatten(), mc.layers.Dense(10),
])
model.build((None, 28, 28, 1), rng=0)
print(model.summary())
first_filters = model.layers[0].kernel.value.copy()
losses = train(model, steps=300)
for step in (1, 10, 100, 300):
    print(f"  step {step:3d}  loss {losses[step - 1]:.3f}")
reached = accuracy(model)
print(f"  {reached:.1%} of the 10,000 test images are read right")
claim("it starts with guessing: the first loss is near log 10", abs(losses[0] - np.log(10)) < 0.5)
claim("after 300 steps more than 90% are right", reached > 0.9)

# %% [markdown]
# ## 8. What the filters detect
#
# Nobody designed the filters: they started as random numbers. What does a filter detect? Of all
# patches of the same length (as vectors), the one with the largest response is the filter itself:
# by the Cauchy-Schwarz inequality, patch . w <= |patch| |w|, with equality if the patch is parallel
# to w. So a picture of the filter is a picture of what it detects.

# %%
print("\n8. What the filters detect")
kernel = model.layers[0].kernel.value  # (5, 5, 1, 8)
vectors = kernel.reshape(25, 8)
lengths = np.linalg.norm(vectors, axis=0)
ink = columns[np.linalg.norm(columns, axis=1) > 0]
ink = ink / np.linalg.norm(ink, axis=1, keepdims=True)
claim("a filter's response to itself, scaled to length 1, is its length",
      close((vectors / lengths * vectors).sum(axis=0), lengths))
claim("no patch of the digit has a larger response", (ink @ vectors <= lengths * 1.00001).all())
claim("training has changed every filter",
      (np.abs(kernel - first_filters).max(axis=(0, 1, 2)) > 0.01).all())
signs = np.where(np.abs(kernel) < 0.3 * np.abs(kernel).max(), ".", np.where(kernel > 0, "+", "-"))
for row in signs[:, :, 0]:
    print("   ", "   ".join("".join(row[:, f]) for f in range(8)))

# %% [markdown]
# Some have become strokes or edges of one direction; others still look like noise after so few
# steps. `minicnn.plots` draws their weights, and their responses to our digit.

# %%
def save(name, draw, values):
    """Save a picture, if matplotlib is installed; a notebook shows it instead."""
    try:
        figure = draw(values)
    except ImportError as error:
        print(f"  no picture: {error}")
        return
    if in_notebook:
        from IPython.display import Image, display

        png = io.BytesIO()
        figure.savefig(png, dpi=80)
        display(Image(png.getvalue()))
        return
    args.output = args.output or tempfile.mkdtemp(prefix="minicnn_walkthrough_")
    path = Path(args.output, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    print(f"  picture: {path}")


save("filters.png", mc.plots.filters, kernel)
maps = model.layers[0].forward(x, mc.Context())  # of the digit of step 1, (1, 24, 24, 8)
save("feature_maps.png", mc.plots.feature_maps, maps[0])

# %% [markdown]
# ## 9. A layer of your own
#
# Average pooling returns the mean of each block instead of its maximum. A layer is a class with
#
# - `build`: checks the shape of the inputs, creates the parameters if there are any, and returns
#   the shape of the output. Unsuitable inputs should fail here, not in the middle of training;
# - `forward`: returns the output, and saves what `backward` needs in `ctx[self]`;
# - `backward`: returns the gradient of the inputs, and writes each parameter's `grad`.
#
# How does output y change with input x? An average over k * k elements changes by 1 / (k * k) of
# the change of each element, so each gets that share of dy. Nothing needs to be saved.

# %%
print("\n9. A layer of your own")


class AveragePooling(mc.layers.Layer):
    """Compute the mean of each block of size x size elements, channel by channel."""

    rank = 4  # of the inputs; `Layer.build` refuses others

    def __init__(self, size, name=None):
        super().__init__(name)
        self.size = size

    def build(self, input_shape, rng, dtype=np.float32):
        _, h, w, c = super().build(input_shape, rng, dtype)
        if h % self.size or w % self.size:
            raise ValueError(f"{self.label}: blocks of {self.size} do not tile images of {h} x {w}")
        return (None, h // self.size, w // self.size, c)

    def forward(self, x, ctx):
        n, h, w, c = self.check_inputs(x).shape
        k = self.size
        return x.reshape(n, h // k, k, w // k, k, c).mean(axis=(2, 4))

    def backward(self, dy, ctx, need_dx=True):
        return dy.repeat(self.size, axis=1).repeat(self.size, axis=2) / self.size**2


# %% [markdown]
# Three checks, from cheap to thorough: a block by hand; then, as the layer is linear, the *adjoint
# identity*: backward must be the transpose of forward, so that <f(x), g> = <x, f'(g)> for any x and
# g; and the differences of step 6.

# %%
rng = np.random.default_rng(2)
pool, ctx = AveragePooling(3), mc.Context()
print("  shape of its output:", pool.build((None, 6, 9, 2), rng=0, dtype=np.float64))
source, g = rng.normal(size=(2, 6, 9, 2)), rng.normal(size=(2, 2, 3, 2))
means = pool.forward(source, ctx)
claim("an output is the mean of its block",
      close(means[1, 0, 2, 1], source[1, 0:3, 6:9, 1].mean(), 1e-12))
claim("<f(x), g> = <x, f'(g)>",
      close((means * g).sum(), (source * pool.backward(g, ctx)).sum(), 1e-12))
report = mc.check_gradients(AveragePooling(3), (2, 6, 9, 2))
print(" ", report)
claim("the differences agree", report.ok)
refused = ""
try:
    AveragePooling(5).build((None, 6, 9, 2), rng=0)
except ValueError as error:
    refused = str(error)
print(" ", refused)
claim("build refuses blocks that do not fit", "do not tile" in refused)

# %% [markdown]
# A model needs no more from a layer: in a `Sequential` it works like the library's own.

# %%
averaging = mc.Sequential([
    mc.layers.Conv2D(8, 5, activation="relu"), AveragePooling(2),
    mc.layers.Flatten(), mc.layers.Dense(10),
])
averaging.build((None, 28, 28, 1), rng=0)
train(averaging, steps=300)
reached = accuracy(averaging)
print(f"  with average pooling {reached:.1%} are right")
claim("a network with our layer learns to more than 85%", reached > 0.85)

# %% [markdown]
# ## 10. Another backward rule
#
# The derivative of some functions is useless. A step, y = 1 if x > 0 and else 0, has slope 0 nearly
# everywhere: the layers before it never learn. The *straight-through estimator* uses the derivative
# of the identity near 0 instead:
#
#     forward:   y = 1 where x > 0, else 0
#     backward:  dx = dy where |x| <= 1, else 0
#
# (Y. Bengio, N. Leonard, A. Courville, arXiv:1308.3432, 2013; with the bound |x| <= 1: M.
# Courbariaux et al., arXiv:1602.02830, 2016.) To change a rule, subclass a layer and override
# `backward`.

# %%
print("\n10. Another backward rule")


class Step(mc.layers.Layer):
    """y = 1 where x > 0, else 0; dx = 0."""

    def forward(self, x, ctx):
        ctx[self] = x
        return (x > 0).astype(x.dtype)

    def backward(self, dy, ctx, need_dx=True):
        return np.zeros_like(dy)


class StraightThrough(Step):
    """The same step; dx = dy where |x| <= 1, else 0."""

    def backward(self, dy, ctx, need_dx=True):
        return dy * (np.abs(ctx[self]) <= 1)


# %% [markdown]
# Differences check both: the first rule is the derivative of the step, the second one is not. A
# rule that is replaced on purpose should fail `check_gradients`, and does.

# %%
honest, estimator = (mc.check_gradients(layer, (2, 5)) for layer in (Step(), StraightThrough()))
claim("the zero gradient of the step is right", honest.ok)
claim("the straight-through rule is not its derivative", not estimator.ok)

# %% [markdown]
# Training shows the use of the rule. Each image passes through 16 units that are on or off, so it
# matters what these 16 units detect.

# %%
def train_binary(activation):
    """Train with 16 units of the activation; return the change of weights and the accuracy."""
    hidden = mc.layers.Dense(16)
    model = mc.Sequential([mc.layers.Flatten(), hidden, activation, mc.layers.Dense(10)])
    model.build((None, 28, 28, 1), rng=0)
    before = hidden.kernel.value.copy()
    train(model, steps=300)
    moved = np.abs(hidden.kernel.value - before).max()
    reached = accuracy(model)
    print(f"  {activation.kind}: weights moved by {moved:.2f}, {reached:.1%} right")
    return moved, reached


stuck, stuck_accuracy = train_binary(Step())
free, free_accuracy = train_binary(StraightThrough())
claim("before the step, the weights do not change at all", stuck == 0 < free)
claim("the estimator adds at least 25 points of accuracy", free_accuracy > stuck_accuracy + 0.25)

# %% [markdown]
# The same works with a layer of the library. Note that a `Sequential` computes adjacent
# convolution, ReLU and pooling layers in one *fused* pass (`minicnn/layers/fusion.py`). It does so
# only for exactly these classes, not for subclasses, so your `backward` is always called.

# %%
class LeakyBackward(mc.layers.Activation):
    """ReLU, but a tenth of the gradient passes where the output is 0, so that every unit learns."""

    def __init__(self):
        super().__init__("relu")

    def backward(self, dy, ctx, need_dx=True):
        return 0.9 * super().backward(dy, ctx) + 0.1 * dy


def kernel_gradient(activation, fuse):
    """Return the gradient of the filters before an activation and max pooling."""
    conv = mc.layers.Conv2D(8, 5)
    model = mc.Sequential([conv, activation, mc.layers.MaxPooling2D(2), mc.layers.Flatten(),
                           mc.layers.Dense(10)], fuse=fuse)
    model.build((None, 28, 28, 1), rng=0)
    loss_and_backward(model, mnist.train.images[:50], mnist.train.labels[:50])
    return conv.kernel.grad


leaky = kernel_gradient(LeakyBackward(), fuse=True)
claim("fusing does not change the gradient with our rule",
      close(leaky, kernel_gradient(LeakyBackward(), fuse=False)))
claim("this gradient differs from that of the library's ReLU",
      not close(leaky, kernel_gradient(mc.layers.Activation("relu"), fuse=True), 1e-3))
print(f"\nAll {len(claims)} claims hold. The end of the file says what to read next.")

# %% [markdown]
# ## What to read next
#
# | To see | read |
# |---|---|
# | the shortest layer with parameters | `minicnn/layers/dense.py` |
# | steps 2 and 3 as a layer | `minicnn/layers/conv2d.py` |
# | the three products, block by block | `minicnn/kernels/conv/conv.py` |
# | the columns and the way back | `minicnn/kernels/conv/im2col.py` |
# | a fast matrix product | `minicnn/kernels/gemm.py` |
# | step 4, with overlapping windows | `minicnn/kernels/pooling.py` |
# | step 5, with weights and label smoothing | `minicnn/losses.py` |
# | step 6 in full: directions, kinks, ties | `minicnn/core/gradcheck.py` |
# | momentum, Adam and schedules | `minicnn/optimizers.py` |
# | several layers in one pass | `minicnn/layers/fusion.py` |
# | step 7 with dropout and a command line | `examples/training_loop.py` |
# | a training run that stops and resumes | `examples/mnist_cnn.py` |
# | every layer as plain loops | `tests/naive.py` |
# | how to add a layer or a kernel to the library | `CONTRIBUTING.md` |
