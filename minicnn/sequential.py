"""The Sequential model: layers in a row, and what a user does with them."""

import copy
import secrets
from typing import Any

import numpy as np

from minicnn.core import checks
from minicnn.core.context import Context
from minicnn.core.files import JsonLines
from minicnn.core.hints import hinted
from minicnn.core.log import logger
from minicnn.core.op import Op, all_or_nothing, named_parameters
from minicnn.core.weights import PARAMETERS
from minicnn.estimator import evaluation, feeding, supervised, training
from minicnn.estimator.config import RunConfig
from minicnn.estimator.history import History
from minicnn.estimator.model import InPlace, Model
from minicnn.estimator.streams import Stream
from minicnn.estimator.supervised import ModelFn, ends_in, head_of
from minicnn.hooks import NanLossError
from minicnn.inference import InferenceModel, program_of, with_kernels
from minicnn.layers.chain import LAYERS, Chain, check_once
from minicnn.ops import activation


class Sequential(Chain, repeatable=True):
    """Run layers one after the other.

    Models may share layers. A layer that was built before keeps its parameters. If all layers were
    built before, and their shapes fit, the model can be used without a call of `build`.

    Parameters
    ----------
    layers : iterable of Layer
        No layer may occur twice. ``model.add(layer)`` adds another one; ``model[0]`` is the first,
        and ``model[:-1]`` a model of all but the last.
    name : str, optional
    fuse : bool
        Compute adjacent layers in one pass where possible. The results differ only by rounding,
        relative to the largest output nearby. Zeros are skipped: if an input is infinite, a
        gradient may be finite instead of NaN. A Sequential among the layers, or in a `Residual`,
        has its own `fuse`; ``MINICNN_FUSE=0`` in the environment is for all.

    Examples
    --------
    >>> import numpy as np, minicnn as mc
    >>> model = mc.Sequential([
    ...     mc.layers.Conv2D(8, 3, activation="relu"), mc.layers.MaxPooling2D(2),
    ...     mc.layers.Flatten(), mc.layers.Dense(10)])
    >>> model.build((None, 28, 28, 1), rng=0)
    (None, 10)
    >>> model.predict(np.zeros((3, 28, 28, 1), np.float32)).shape
    (3, 10)
    >>> model[0], len(model)
    (Conv2D(8, 3, activation='relu', name='conv2d'), 4)
    """

    _loss: Any = "softmax_cross_entropy"  # of the last fit
    _left: tuple[Any, ...] = (None, ())  # by the last fit: see `InPlace`, and rows of a `History`

    def add(self, layer: Op) -> None:
        """Append a layer. The other layers keep their values; `build` or `fit` builds the new one.

        A `fit` after this is a new run.

        Parameters
        ----------
        layer : Layer
            One that the model does not have yet.

        Examples
        --------
        >>> import minicnn as mc
        >>> model = mc.Sequential()
        >>> model.add(mc.layers.Dense(3, activation="relu"))
        >>> model.add(mc.layers.Dense(2))
        >>> model.build((None, 4), rng=0)
        (None, 2)
        """
        layers = [*self.layers, checks.instance(layer, Op, "layer", LAYERS)]
        check_once(layers)
        self.layers = layers
        self.input_shape = self._built = None
        self._chain = []
        self._left = type(self)._left

    def reset_parameters(self, rng: Any) -> None:
        super().reset_parameters(rng)
        self._left = type(self)._left

    @hinted
    def fit(
        self,
        x: Any,
        y: Any = None,
        batch_size: int = 32,
        epochs: int | None = None,
        steps: int | None = None,
        max_epochs: int | None = None,
        max_steps: int | None = None,
        optimizer: Any = "Adam",
        learning_rate: Any = None,
        loss: Any = "softmax_cross_entropy",
        metrics: Any = None,
        validation_data: Any = None,
        validation_split: float | None = None,
        validation_steps: int | None = None,
        class_weight: Any = None,
        sample_weight: Any = None,
        hooks: Any = None,
        early_stopping: Any = None,
        model_dir: Any = None,
        seed: int | None = None,
        shuffle: bool = True,
        augment: Any = None,
        verbose: Any = True,
        config: RunConfig | None = None,
    ) -> History:
        """Train the model in place; build it for the data first if that has not been done.

        Without a `model_dir`, another `fit` continues this one: the count of steps, the order of
        the data and, for the same optimizer, its state. With a `model_dir` there are checkpoints,
        and a run that was stopped or killed continues from the newest one, with the same bits as
        without the stop. Ctrl-C ends the run after the step. If the loss becomes NaN, the values
        that the model had before this fit are restored.

        Parameters
        ----------
        x, y : array, table, Dataset, function or iterable
            The rows and their labels: class numbers or one-hot rows for the default loss. `x` may
            be a `Dataset`, a function that returns an iterable of batches (x, y) or
            (x, y, weights), or such an iterable; then `y` is None. To resume, a function is called
            again, and the batches that were used are skipped; an iterator goes on where it is.
        batch_size : int
            Rows in a step; not for a function or iterable.
        epochs, steps : int, optional
            How many passes over the data, or steps, to do from here. The default is one epoch.
        max_epochs, max_steps : int, optional
            In place of these: the number of passes or steps in total. Then the same command
            continues a run that was killed, and ends at the same step.
        optimizer : str, Optimizer, class or callable
            As for `optimizers.get`. An Optimizer is copied.
        learning_rate : float or schedule, optional
            The default is 0.001 for "Adam", "AdamW" and "RMSprop"; an Optimizer has its own.
        loss : str or callable
            The name of a loss in `minicnn.losses`, or a function of the Tensors (labels, outputs),
            and of (labels, outputs, weights) if there are weights. If the model ends in the
            activation that a loss by name applies itself, such as softmax, the loss is computed
            from the values before it.
        metrics : list or dict, optional
            Names of functions in `minicnn.metrics`, functions of (labels, predictions), or a dict
            of these or of `MetricSpec` by name. For a loss of classes, labels and predictions are
            class numbers (predictions for "top_k_accuracy": the outputs), and the default is the
            accuracy.
        validation_data : tuple (x, y), Dataset, function or iterable, optional
            Measured at the end of each epoch and at the end of the run. If `x` is a function, or an
            iterable without a length, it is measured only at the end of the run, unless
            `validation_steps` is given.
        validation_split : float, optional
            In place of `validation_data`: the share of the rows that are held back for validation.
            They are drawn by the seed, with the same share of each class, and are the same when a
            run is resumed.
        validation_steps : int, optional
            How many steps to do from one validation to the next, in place of an epoch.
        class_weight : dict, optional
            Weights by class number; the other classes have the weight 1. Each row of `y` must be of
            one class.
        sample_weight : array, (N,), optional
            The weight w of each row, multiplied by that of its class. The loss of a step is
            sum(w loss) / count(w != 0). Validation and `evaluate` are not weighted.
        hooks : list, optional
            `SessionRunHook` objects, or functions of (step, values), called after each step;
            `values` has the loss, the learning rate and, after a validation, its results.
        early_stopping : int or EarlyStopping, optional
            Stop after this many validations without a lower loss, and restore the weights of the
            best validation.
        model_dir : str or Path, optional
            The folder of checkpoints, and of the history. If it has a checkpoint, its values
            replace the model's.
        seed : int, optional
            Determines start values, the order of the data and dropout. None takes that of the run
            that is continued, or draws one.
        shuffle : bool
            Whether the rows are in another order in each epoch.
        augment : callable, optional
            A function of (images, rng) that changes the images of each batch: it takes a copy of
            them and a random generator, and returns images of the same shape. `datasets.augment`
            makes one that shifts, flips, crops and rotates.
        verbose : bool or int
            Whether progress is shown: True or 1, 2 for few lines, False or 0 for nothing.
        config : RunConfig, optional
            For example `distribute`, or how often checkpoints are saved.

        Returns
        -------
        History
            Of this fit and of those that it continues.

        Raises
        ------
        ValueError, TypeError
            If an argument, a shape or a label is invalid; before the first step.
        NanLossError
            If the loss is not finite.
        CheckpointError
            If the checkpoint in `model_dir` is of another model, or damaged.
        KeyboardInterrupt
            After Ctrl-C, once the step is done.

        Examples
        --------
        >>> import numpy as np, minicnn as mc
        >>> x = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)
        >>> y = (x[:, 0] > x[:, 1]).astype(int)
        >>> model = mc.Sequential([mc.layers.Dense(2)])
        >>> history = model.fit(x, y, epochs=20, learning_rate=0.05, seed=0, verbose=False)
        >>> history.last["step"]
        140
        >>> model.score(x, y) > 0.95
        True
        """
        model_fn = ModelFn(self, True, loss, optimizer, learning_rate)
        config = self._config(config, verbose, seed)
        with config.distribute.run():
            store, history = self._store(model_fn, model_dir, config)
            given = supervised.data(x, y)
            if validation_split is not None:
                checks.exclusive(
                    validation_data=validation_data, validation_split=validation_split
                )
                given, sample_weight, validation_data = supervised.split(
                    given, validation_split, config.seed, sample_weight
                )
            given = supervised.weighted(given, class_weight, sample_weight, model_fn.head)
            feed = supervised.training_feed(given, batch_size, shuffle)
            feed = feeding.augmented(feed, augment)
            ends = supervised.ends(
                feed, epochs=epochs, steps=steps, max_epochs=max_epochs, max_steps=max_steps
            )
            x = feed.peek()[0]
            with all_or_nothing(self):
                if self.input_shape is None and not isinstance(x, dict):  # an error follows
                    self.build((None, *x.shape[1:]), Stream.INIT.generator(config.seed))
                own = supervised.monitors(
                    model_fn, feed, validation_data, metrics, validation_steps, early_stopping
                )
                own += training.as_hooks(hooks, "hooks")
                run_hooks = training.run_hooks(config, feed, *ends, own, history)
            self._loss = loss
            self._train(store, history, feed, config, run_hooks)
        return history

    def _config(self, config: RunConfig | None, verbose: Any, seed: Any = None) -> Any:
        """Return a copy of a configuration with the arguments of fit."""
        config = RunConfig() if config is None else config
        config = copy.copy(checks.instance(config, RunConfig, "config"))
        if not isinstance(verbose, int | np.integer | np.bool_) or verbose not in (0, 1, 2):
            raise ValueError(f"`verbose` must be True, False, 0, 1 or 2, got {verbose!r}")
        config.progress = config.progress and verbose
        config.fuse = config.fuse and self.fuse
        if seed is not None:
            config.seed = checks.integer(seed, "seed", 0)
        return config

    def _store(self, model_fn: ModelFn, model_dir: Any, config: Any) -> tuple[InPlace, History]:
        """Return where a run begins and what it leaves, and its history; set its seed."""
        self._use_built_layers()
        values = {f"{PARAMETERS}{p.name}": p.value for p in self.parameters}
        left, rows = self._left
        if left is not None:
            left = left._replace(arrays=left.arrays | values)
        folder = None if model_dir is None else checks.path(model_dir, "model_dir").absolute()
        history = History(folder and folder / "history.jsonl", rows)
        store = InPlace(folder, model_fn, left if folder is None else None)
        found = store.newest() if config.distribute.is_chief else None
        if folder is not None:
            store.left = found
        if found is not None and any(
            name in found.arrays and not np.array_equal(value, found.arrays[name])
            for name, value in values.items()
        ):
            logger.warning(
                "Training goes on from %s: its values replace those of the model. To keep these, "
                "use another model_dir", found.path,
            )
        if config.seed is None:
            config.seed = secrets.randbits(32) if found is None else found.meta["seed"]
            logger.info("The seed of this run is %d.", config.seed)
        config.seed = config.distribute.from_chief(config.seed)
        return store, history

    def _train(self, store: InPlace, history: History, *run: Any) -> None:
        """Do a run and note what it leaves; if the loss is not finite, put the values back."""
        before = [parameter.value.copy() for parameter in self.parameters]
        left = store.left
        try:
            training.train(store, *run)
        except NanLossError as error:
            for parameter, value in zip(self.parameters, before, strict=True):
                parameter.value[...] = value
            store.left = left
            raise NanLossError(
                f"{error}. The model has the values from before this fit again"
            ) from error
        finally:
            self._left = store.left, history.rows

    @hinted
    def evaluate(
        self,
        x: Any,
        y: Any = None,
        batch_size: int | None = None,
        metrics: Any = None,
        loss: Any = None,
        verbose: Any = True,
    ) -> dict[str, Any]:
        """Return the loss and the metrics on data; all rows have the same weight.

        Parameters
        ----------
        x, y, metrics, verbose
            As for `fit`.
        batch_size : int, optional
            Rows that are computed at a time; the default is 100.
        loss : str or callable, optional
            The default is that of the last `fit`, or softmax cross-entropy.

        Returns
        -------
        dict
            ``"loss"`` and each metric: by default, for a loss of classes, ``"accuracy"``.

        Examples
        --------
        >>> import numpy as np, minicnn as mc
        >>> model = mc.Sequential([mc.layers.Dense(2, kernel_initializer="zeros")])
        >>> model.build((None, 3), rng=0)
        (None, 2)
        >>> model.evaluate(np.ones((4, 3)), np.array([0, 0, 0, 1]), verbose=False)
        {'loss': 0.6931471824645996, 'accuracy': 0.75}
        """
        self._use_built_layers()
        if self.input_shape is None:
            raise RuntimeError(f"{self.label}: call fit before evaluate, or build and load weights")
        loss = self._loss if loss is None else loss
        model_fn = ModelFn(self, True, loss)  # its layers are copied in any case
        model = Model(model_fn, {}, parameters=named_parameters(self))
        feed = feeding.feed(*supervised.data(x, y).unweighted(), batch_size)
        results = evaluation.evaluate(
            model, feed, self._config(None, verbose), JsonLines(None),
            metrics=model_fn.metrics(metrics),
        )
        del results["global_step"]
        return {"loss": results.pop("loss"), **results}

    def score(self, x: Any, y: Any = None) -> float:
        """Return the accuracy, as scikit-learn's classifiers do.

        Parameters
        ----------
        x, y
            As for `fit`.

        Examples
        --------
        >>> import numpy as np, minicnn as mc
        >>> model = mc.Sequential([mc.layers.Dense(2, kernel_initializer="zeros")])
        >>> model.build((None, 3), rng=0)
        (None, 2)
        >>> model.score(np.ones((4, 3)), np.array([0, 0, 0, 1]))
        0.75
        """
        return self.evaluate(x, y, metrics=["accuracy"], verbose=False)["accuracy"]

    def predict(self, x: Any, batch_size: int = 100) -> np.ndarray:
        """Return the outputs for all rows of `x`, computed `batch_size` rows at a time.

        They are what the last layer returns: logits, not probabilities, if the model does not end
        in a softmax. `predict_proba` returns probabilities, and `predict_classes` class numbers.
        For the outputs of a layer in the middle take a part of the model:
        ``model[:2].predict(x)``.

        Parameters
        ----------
        x : ndarray
            (N, ...), float; converted to the model's dtype.
        batch_size : int

        Returns
        -------
        ndarray
            (N, ...)
        """
        batch_size = checks.integer(batch_size, "batch_size")
        x = self.converted(x)  # before it is cut: errors quote the user's shape
        starts = range(0, max(len(x), 1), batch_size)
        return np.concatenate(
            [self.forward(x[start : start + batch_size], Context(save=False)) for start in starts]
        )

    def for_inference(self, weight_dtype: Any = "float32") -> InferenceModel:
        """Return a copy of the model that predicts faster, above all a few rows at a time.

        It is a snapshot: later changes of the weights have no effect.

        Parameters
        ----------
        weight_dtype : "float32" or "float16", or the NumPy type
            "float16" makes the model smaller: the kernels of its `Dense` layers are rounded to
            float16 (11 significant bits) and take half the memory, also in a pickle. Outputs, sums
            and all other weights stay float32. A few rows are predicted faster if a kernel is
            larger than the CPU's second-level cache. A kernel stays float32 if its largest weight
            is below 6.1e-5 or above 65504, where float16 has fewer bits or none. `warmup` compiles
            the kernels of such a model if it is given itself, with rows.

        Returns
        -------
        InferenceModel

        Raises
        ------
        RuntimeError
            If the model was not built.
        ValueError
            If `weight_dtype` is another type, or float16 for a model of float64.

        Examples
        --------
        >>> import numpy as np, minicnn as mc
        >>> model = mc.Sequential([mc.layers.Dense(2)])
        >>> model.build((None, 4), rng=0)
        (None, 2)
        >>> model.for_inference().predict(np.zeros((1, 4), np.float32)).shape
        (1, 2)
        """
        self._use_built_layers()
        model = copy.copy(self)
        model._left = type(self)._left  # the optimizer's state is not needed
        return with_kernels(InferenceModel(program_of(model)), weight_dtype)

    def predict_proba(self, x: Any, batch_size: int = 100) -> np.ndarray:
        """Return the probability of each class for all rows of `x`.

        It is the softmax of the outputs, or their sigmoid if the last `fit` was with
        "sigmoid_cross_entropy". If the model itself ends in this activation, it is the outputs.

        Parameters
        ----------
        x, batch_size
            As for `predict`.

        Returns
        -------
        ndarray
            (N, classes)

        Examples
        --------
        >>> import numpy as np, minicnn as mc
        >>> model = mc.Sequential([mc.layers.Dense(2, kernel_initializer="zeros")])
        >>> model.build((None, 3), rng=0)
        (None, 2)
        >>> model.predict_proba(np.ones((1, 3), np.float32))
        array([[0.5, 0.5]], dtype=float32)
        """
        op = activation(head_of(self._loss).activation)
        if op is None:
            raise ValueError(
                f"{self.label}: the loss of the last fit has no probabilities; use predict"
            )
        outputs = self.predict(x, batch_size)
        return outputs if ends_in(self, op) else op(outputs)

    def predict_classes(self, x: Any, batch_size: int = 100) -> np.ndarray:
        """Return the class number of the most probable class for all rows of `x`.

        Parameters
        ----------
        x, batch_size
            As for `predict`.

        Returns
        -------
        ndarray of int
            (N,)

        Examples
        --------
        >>> import numpy as np, minicnn as mc
        >>> model = mc.Sequential([mc.layers.Dense(2, bias_initializer=lambda *_: np.arange(2.0))])
        >>> model.build((None, 3), rng=0)
        (None, 2)
        >>> model.predict_classes(np.zeros((1, 3), np.float32))
        array([1])
        """
        # `predict_proba` raises if the loss is not one of classes.
        return head_of(self._loss).classes(self.predict_proba(x, batch_size))  # type: ignore[misc]
