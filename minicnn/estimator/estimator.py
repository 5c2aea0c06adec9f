"""The Estimator: trains, evaluates and predicts with a model_fn; checkpoints are in a folder."""

import copy
import functools
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minicnn.core import checks
from minicnn.core.hints import Hinting, hinted
from minicnn.core.log import logger
from minicnn.core.op import Op
from minicnn.estimator import evaluation, feeding, training
from minicnn.estimator.config import MetricSpec, ModeKeys, RunConfig
from minicnn.estimator.history import History
from minicnn.estimator.model import Models
from minicnn.estimator.starting import expressions, warm_start
from minicnn.estimator.supervised import ModelFn
from minicnn.hooks import SessionRunHook
from minicnn.inference import InferenceModel, with_kernels
from minicnn.layers.chain import Chain


class Estimator(Hinting):
    """Train, evaluate and predict with the model that a function describes.

    Parameters
    ----------
    model_fn : callable or Sequential
        A Sequential: the Estimator begins with its values, if it was built, and trains a copy;
        ``load_weights(model, model_dir)`` brings the trained values into it. The predictions are
        "outputs", "probabilities" and "classes".
        A function of some of (features, labels, mode, params, config), by these names, that
        returns `ModelFnOps`. Features and labels are symbolic Tensors. It is called once for each
        mode of a run and of a checkpoint.
    model_dir : str or Path, optional
        The folder of checkpoints; training continues from the latest one. None makes a temporary
        folder, which is removed with the Estimator, or at the end of the program. It is kept if
        the Estimator is copied or pickled, or if the attribute `model_dir` is read.
    params : dict, optional
        Passed to model_fn. For a Sequential: "loss", "optimizer" and "learning_rate" as for
        `Sequential.fit`.
    config : RunConfig, optional
    warm_start_from : str or Path, optional
        The parameters of a new run start with the values in this file of `save_weights`, this
        checkpoint, or the newest checkpoint in this folder. The optimizer and the count of steps
        start at zero. It is used only at the very start: once `model_dir` has a checkpoint,
        training continues from that.
    vars_to_warm_start : str or sequence of str
        Which parameters start from `warm_start_from`: a regular expression, or several, that
        matches a name from its beginning, such as ``"conv2d"``, ``"(?!dense_1/)"`` (all but that
        layer) or a complete name. All that match must be in the file, with the same shapes. The
        moving statistics of batch normalization are among them.

    Attributes
    ----------
    model_dir : Path
    history : History

    Raises
    ------
    CheckpointError
        If the checkpoint in `model_dir` is of another model; the error names the parameter.

    Notes
    -----
    `model_dir` holds the newest checkpoints (``model.ckpt-N.npz``), their index
    ``checkpoint.json``, the best values of each monitor that keeps them
    (``model.best-validation.npz``), ``evaluations.jsonl`` with a line for each evaluation,
    ``history.jsonl`` and, during a `fit`, ``.lock``. A checkpoint is a plain ``.npz`` of arrays
    (``parameters/conv2d/kernel``, ...), never a pickle. It holds everything for an exact resume: 60
    steps give the same bits as 30 steps, a restart and 30 more.

    `evaluate` and `predict` use the newest checkpoint at the time of the call, even while another
    process or thread, or the `fit` whose hook makes the call, trains there. The weights are kept in
    memory, and read again if the folder, its index or the file has changed. If the folder is gone,
    the Estimator warns and uses the weights in memory.

    Estimators, layers, models, optimizers, schedules and hooks can be pickled. A pickle is for the
    version that wrote it; checkpoints and weight files stay readable.

    Examples
    --------
    >>> import numpy as np, minicnn as mc
    >>> def model_fn(features, labels, mode):
    ...     logits = mc.layers.dense(features, units=2)
    ...     predictions = {"classes": mc.argmax(logits, axis=1)}
    ...     loss = train_op = None
    ...     if mode != mc.ModeKeys.INFER:
    ...         loss = mc.losses.softmax_cross_entropy(mc.one_hot(labels, 2), logits)
    ...     if mode == mc.ModeKeys.TRAIN:
    ...         train_op = mc.optimize_loss(loss, learning_rate=0.5, optimizer="SGD")
    ...     return mc.ModelFnOps(mode, predictions, loss, train_op)
    >>> x = np.array([[0.0, 1.0], [1.0, 0.0]] * 50, np.float32)
    >>> y = np.array([0, 1] * 50)
    >>> estimator = mc.Estimator(model_fn, config=mc.RunConfig(seed=0)).fit(x, y, steps=50)
    >>> accuracy = mc.MetricSpec(mc.metrics.accuracy, prediction_key="classes")
    >>> estimator.evaluate(x, y, metrics={"accuracy": accuracy})["accuracy"]
    1.0
    """

    def __init__(
        self,
        model_fn: Callable[..., Any],
        model_dir: str | Path | None = None,
        params: dict[str, Any] | None = None,
        config: RunConfig | None = None,
        warm_start_from: str | Path | None = None,
        vars_to_warm_start: str | Sequence[str] = ".*",
    ) -> None:
        what = "a function, or a Sequential: write Sequential([layer, ...])"
        if isinstance(model_fn, Op):
            model_fn = copy.deepcopy(checks.instance(model_fn, Chain, "model_fn", what))
            options = checks.instance({} if params is None else params, dict, "params", "a dict")
            function: Callable[..., Any] = ModelFn(
                model_fn, False, **options  # type: ignore[arg-type]
            )
        else:
            function = checks.function(model_fn, "model_fn", what)
        self.config = RunConfig() if config is None else config
        checks.instance(self.config, RunConfig, "config")
        self._removal: Any = None
        if model_dir is None:
            model_dir = tempfile.mkdtemp(prefix="minicnn-")
            self._removal = weakref.finalize(self, _remove, model_dir, os.getpid())
            logger.warning(
                "No model_dir is given; using the temporary folder %s, which is removed with the "
                "Estimator. To keep it, give a model_dir, or read the attribute model_dir",
                model_dir,
            )
        # Absolute, since the program may change its working directory.
        folder = checks.path(model_dir, "model_dir").absolute()
        self._model_fn = model_fn
        self._params = params
        start = checks.optional(checks.path, warm_start_from, "warm_start_from")
        self._warm_start_from = None if start is None else start.absolute()
        self._patterns = expressions(vars_to_warm_start, "vars_to_warm_start")
        self._models = Models(folder, function, {"params": params, "config": self.config})

    def __repr__(self) -> str:
        return f"Estimator(model_dir={str(self._models.folder)!r})"

    @property
    def model_dir(self) -> Path:
        if self._removal is not None:
            self._removal.detach()
        return self._models.folder

    @property
    def history(self) -> History:
        """The curve of the training in `model_dir` so far: losses, rates and validations."""
        return History(self._models.folder / "history.jsonl")

    def __reduce__(self) -> tuple[Any, ...]:  # a copy starts from the latest checkpoint
        return type(self), (
            self._model_fn, self.model_dir, self._params, self.config, self._warm_start_from,
            [pattern.pattern for pattern in self._patterns],
        )

    @hinted
    def fit(
        self,
        x: Any = None,
        y: Any = None,
        input_fn: Callable[[], Any] | None = None,
        steps: int | None = None,
        batch_size: int | None = None,
        monitors: Sequence[SessionRunHook] | None = None,
        max_steps: int | None = None,
        augment: Callable[..., Any] | None = None,
    ) -> "Estimator":
        """Train, continuing from the latest checkpoint if there is one.

        Parameters
        ----------
        x, y : ndarray or dict of str to ndarray
            Rows and their labels; shuffled again for every epoch. float64 becomes float32.
        input_fn : callable, optional
            In place of arrays: returns an iterable of batches (features, labels). To resume, it is
            called again, and the batches that were used are skipped; that is exact if it yields
            the same batches every time.
        steps : int, optional
            How many steps to do from here.
        batch_size : int, optional
            Rows in a step; the default is 100. The last batch of an epoch holds the remaining rows.
        monitors : sequence of SessionRunHook, optional
        max_steps : int, optional
            The global step to end at. Not together with `steps`. Without either, only `monitors`
            or the end of the batches of `input_fn` end the run; arrays without monitors need one.
        augment : callable, optional
            Changes the arrays of each batch: takes the features and a generator, and returns
            features of the same shape, such as what `datasets.augment` returns.

        Returns
        -------
        Estimator
            Itself.

        Raises
        ------
        ValueError, TypeError
            If an argument, a shape or a label is invalid; before the first step.
        NanLossError
            If the loss is not finite; the last checkpoint is from an earlier step.
        CheckpointError
            If another process trains in `model_dir`, or it cannot be written, or all checkpoints
            in it are damaged.
        KeyboardInterrupt
            After Ctrl-C, once the step is done and a checkpoint is written.
        """
        source = self._warm_start_from
        start = source and functools.partial(warm_start, path=source, patterns=self._patterns)
        with self.config.distribute.run():
            feed = feeding.augmented(feeding.feed(x, y, input_fn, batch_size), augment)
            hooks = training.run_hooks(
                self.config, feed, steps, max_steps, monitors, self.history
            )
            training.train(self._models, feed, self.config, hooks, start)
        return self

    @hinted
    def evaluate(
        self,
        x: Any = None,
        y: Any = None,
        input_fn: Callable[[], Any] | None = None,
        batch_size: int | None = None,
        steps: int | None = None,
        metrics: Mapping[str, MetricSpec] | None = None,
        name: str | None = None,
        checkpoint_path: str | Path | None = None,
    ) -> dict[str, Any]:
        """Return the loss and the metrics on data; all rows have the same weight.

        The weights are those of the newest checkpoint in `model_dir` at the moment of the call,
        also while another process, another Estimator or another thread trains there. If the folder
        is gone, those in memory are used, with a warning. (Inside a run, `ValidationMonitor` and
        ``session.evaluate`` measure the weights of that step.)

        The results are also added to ``evaluations.jsonl`` in `model_dir`, as one line of JSON
        with `name` and the number of rows.

        Parameters
        ----------
        x, y, input_fn, batch_size
            As for `fit`; not shuffled, one pass.
        steps : int, optional
            The largest number of batches.
        metrics : dict from str to MetricSpec, optional
            With a Sequential in place of a model_fn, as for `Sequential.fit`: the default is the
            accuracy, for a loss of classes.
        name : str, optional
            What the data is, such as "test": `plots.learning_curve` draws a line for each name. The
            default is "evaluation".
        checkpoint_path : str or Path, optional
            The file of another checkpoint, such as ``"my_model/model.ckpt-100.npz"``.

        Returns
        -------
        dict
            ``"loss"``, ``"global_step"`` and each metric: Python numbers (arrays where a metric
            is one).

        Raises
        ------
        CheckpointError
            If nothing has been trained yet, or the checkpoint is of another model; the error names
            the folder.
        """
        model = self._models.chosen(checkpoint_path)
        logger.info(
            "Eval steps [0,%s) for training step %d.", "inf" if steps is None else steps, model.step
        )
        feed = feeding.feed(x, y, input_fn, batch_size)
        if isinstance(self._models.model_fn, ModelFn):
            metrics = self._models.model_fn.metrics(metrics)
        return evaluation.evaluate(
            model, feed, self.config, self._models.record, steps, metrics, name
        )

    @hinted
    def predict(
        self,
        x: Any = None,
        input_fn: Callable[[], Any] | None = None,
        batch_size: int | None = None,
        as_iterable: bool = True,
        checkpoint_path: str | Path | None = None,
        outputs: Sequence[str] | None = None,
    ) -> Any:
        """Return the predictions for every row.

        The weights are those of the newest checkpoint in `model_dir` at the moment of the call, as
        for `evaluate`; an iterator keeps them to its end.

        Parameters
        ----------
        x : ndarray or dict of str to ndarray
        input_fn : callable, optional
            In place of `x`: returns an iterable of batches of features, or (features, labels).
        batch_size : int, optional
        as_iterable : bool
            True gives an iterator with one dict for each row (one value, if model_fn's
            predictions are a single Tensor), in which a number such as the class is one of Python,
            not of NumPy; False gives a dict of arrays of all rows.
        checkpoint_path : str or Path, optional
            The file of another checkpoint.
        outputs : sequence of str, optional
            The names of what to return instead of all predictions: predictions, or tensors of the
            graph, such as the outputs of the layers ``["conv2d", "dense"]``.

        Returns
        -------
        iterator, or dict of str to ndarray

        Raises
        ------
        CheckpointError
            If nothing has been trained yet, or the checkpoint is of another model; the error names
            the folder.
        """
        model = self._models.chosen(checkpoint_path)
        feed = feeding.feed(x, None, input_fn, batch_size)
        trace = model.trace(ModeKeys.INFER, (feed.peek()[0], None))
        fast = trace.inference(outputs, self.config.fuse)
        batches = evaluation.predictions(trace, fast, feed)
        if checks.boolean(as_iterable, "as_iterable"):
            return evaluation.rows_in(batches)
        return feeding.concatenate(evaluation.shown(batches, feed, self.config.progress))

    def for_inference(
        self,
        x: Any,
        checkpoint_path: str | Path | None = None,
        outputs: Sequence[str] | None = None,
        weight_dtype: Any = "float32",
    ) -> InferenceModel:
        """Return a model that predicts faster, above all a few rows at a time.

        It is a snapshot of the newest checkpoint: call this again after more training.

        Parameters
        ----------
        x : ndarray or dict of str to ndarray
            Rows like those to predict: their shapes and types count.
        checkpoint_path : str or Path, optional
            The file of another checkpoint.
        outputs : sequence of str, optional
            As for `predict`.
        weight_dtype : "float32" or "float16", or the NumPy type
            "float16" makes the model smaller: see `Sequential.for_inference`.

        Returns
        -------
        InferenceModel
            Its `predict` returns what that of the Estimator does with ``as_iterable=False``.

        Raises
        ------
        CheckpointError
            If nothing has been trained yet, or the checkpoint is of another model.
        ValueError
            If `weight_dtype` is another type, or float16 for a model of float64.
        """
        model = self._models.chosen(checkpoint_path)
        trace = model.trace(ModeKeys.INFER, (feeding.feed(x, None, None, None).peek()[0], None))
        return with_kernels(trace.inference(outputs, self.config.fuse), weight_dtype)

    def latest_checkpoint(self) -> Path:
        """Return the file of the newest checkpoint, which `evaluate` and `predict` use.

        If its checksum is wrong, it is that of the next older one.

        Returns
        -------
        Path
            For example ``model_dir / "model.ckpt-20000.npz"``.

        Raises
        ------
        CheckpointError
            If nothing has been trained yet.
        """
        return self._models.latest().checkpoint.path  # type: ignore[union-attr]

    def get_variable_names(self) -> list[str]:
        """Return the names of the parameters in the newest checkpoint, sorted."""
        return sorted(self._models.latest().weights())

    def get_variable_value(self, name: str) -> np.ndarray:
        """Return a copy of a parameter in the newest checkpoint.

        Parameters
        ----------
        name : str
            Such as ``"conv2d/kernel"``.

        Raises
        ------
        ValueError
            If no parameter has this name; the error lists the names.
        """
        weights = self._models.latest().weights()
        return weights[checks.existing(name, "name", sorted(weights))].copy()


def _remove(folder: str, process: int) -> None:
    """Remove a temporary folder, in the process that made it."""
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)
