"""Train, evaluate and save the CNN of the guide "A Guide to TF Layers" on MNIST.

    python examples/mnist_cnn.py                    20,000 steps of the guide, then the test set
    python examples/mnist_cnn.py --fast             the same network, 99% in about a minute
    python examples/mnist_cnn.py --steps 3000       a shorter run
    mpiexec -n 4 python examples/mnist_cnn.py --distributed    four processes

Progress is shown while it trains; ``--log`` shows the lines of the guide's log instead. ``--steps``
is the total: the same command continues an interrupted run from the last checkpoint in
``--model-dir``. The start values are those of the guide's log, from `uniform_unit_scaling`.
``--fast`` trains with Adam, whose rate falls to zero, in place of the guide's SGD, which takes
small steps at this rate.
"""

import argparse
import logging
import sys

import numpy as np

import minicnn as mc

INITIALIZER = "uniform_unit_scaling"
FAST_STEPS = 1650  # three epochs


def cnn_model_fn(features, labels, mode, params):
    """Build two convolutions with max pooling, a dense layer with dropout, and ten logits."""
    # (N, 784) -> (N, 28, 28, 1)
    images = mc.reshape(features, [-1, 28, 28, 1])

    # (N, 28, 28, 1) -> (N, 28, 28, 32) -> (N, 14, 14, 32)
    conv1 = mc.layers.conv2d(
        inputs=images, filters=32, kernel_size=5, padding="same", activation=mc.relu,
        kernel_initializer=INITIALIZER,
    )
    pool1 = mc.layers.max_pooling2d(inputs=conv1, pool_size=2, strides=2)

    # (N, 14, 14, 32) -> (N, 14, 14, 64) -> (N, 7, 7, 64)
    conv2 = mc.layers.conv2d(
        inputs=pool1, filters=64, kernel_size=5, padding="same", activation=mc.relu,
        kernel_initializer=INITIALIZER,
    )
    pool2 = mc.layers.max_pooling2d(inputs=conv2, pool_size=2, strides=2)

    # (N, 7, 7, 64) -> (N, 3136) -> (N, 1024) -> (N, 10)
    flat = mc.reshape(pool2, [-1, 7 * 7 * 64])
    dense = mc.layers.dense(
        inputs=flat, units=1024, activation=mc.relu, kernel_initializer=INITIALIZER
    )
    dropout = mc.layers.dropout(inputs=dense, rate=0.4, training=mode == mc.ModeKeys.TRAIN)
    logits = mc.layers.dense(inputs=dropout, units=10, kernel_initializer=INITIALIZER)

    predictions = {
        "classes": mc.argmax(input=logits, axis=1),
        "probabilities": mc.softmax(logits, name="softmax_tensor"),
    }
    loss = train_op = None
    if mode != mc.ModeKeys.INFER:
        onehot_labels = mc.one_hot(labels, depth=10)
        loss = mc.losses.softmax_cross_entropy(onehot_labels=onehot_labels, logits=logits)
    if mode == mc.ModeKeys.TRAIN:
        train_op = mc.optimize_loss(
            loss=loss, learning_rate=params["learning_rate"],
            optimizer=params.get("optimizer", "SGD"),
        )
    return mc.ModelFnOps(mode=mode, predictions=predictions, loss=loss, train_op=train_op)


def adam_until(steps):
    """Return Adam as a function of the rate, which falls to zero along a cosine."""
    return lambda rate: mc.optimizers.Adam(mc.optimizers.cosine_decay(rate, steps))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fast", action="store_true", help=f"Adam and {FAST_STEPS} steps")
    parser.add_argument("--steps", type=int, help="in total (default: 20000)")
    parser.add_argument("--batch-size", type=int, default=100, help="default: 100")
    parser.add_argument("--learning-rate", type=float, default=0.001, help="default: 0.001")
    parser.add_argument("--model-dir", help="default: mnist_cnn_model, or mnist_fast_model")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--data", default="mnist", help="a folder of IDX files instead of MNIST")
    parser.add_argument("--log", action="store_true", help="log lines in place of the progress")
    parser.add_argument("--distributed", action="store_true", help="run as a rank of mpiexec")
    args = parser.parse_args()
    if args.steps is None:
        args.steps = FAST_STEPS if args.fast else 20000
    if args.model_dir is None:
        args.model_dir = "mnist_fast_model" if args.fast else "mnist_cnn_model"
    try:
        ranks = mc.distributed.DataParallel() if args.distributed else None
    except ImportError as error:
        parser.error(str(error))
    if ranks is not None:
        mc.set_num_threads(1)  # one rank for each CPU
    chief = ranks is None or ranks.is_chief
    level = logging.INFO if chief and args.log else logging.WARNING
    logging.basicConfig(level=level, format="%(asctime)s  %(message)s", datefmt="%H:%M:%S")
    if chief and not args.fast:
        print(
            f"{args.steps:,} steps as in the guide; --fast trains the same network to 99% in about "
            "a minute", flush=True,
        )

    data = mc.datasets.load_dataset(args.data)
    classifier = mc.Estimator(
        model_fn=cnn_model_fn,
        model_dir=args.model_dir,
        params={
            "learning_rate": args.learning_rate,
            "optimizer": adam_until(args.steps) if args.fast else "SGD",
        },
        config=mc.RunConfig(
            seed=args.seed, save_checkpoints_secs=60, distribute=ranks, progress=not args.log
        ),
    )
    metrics = {
        "accuracy": mc.MetricSpec(metric_fn=mc.metrics.accuracy, prediction_key="classes")
    }
    validation = mc.hooks.ValidationMonitor(
        data.validation.images, np.asarray(data.validation.labels, dtype=np.int32),
        metrics=metrics, every_n_steps=1000,
    )
    try:
        classifier.fit(
            x=data.train.images,
            y=np.asarray(data.train.labels, dtype=np.int32),
            batch_size=args.batch_size,
            max_steps=args.steps,
            monitors=[validation],
        )
    except KeyboardInterrupt as error:
        print(error)  # how to continue
        sys.exit(130)
    if not chief:
        return

    results = classifier.evaluate(
        x=data.test.images, y=np.asarray(data.test.labels, dtype=np.int32), metrics=metrics,
        name="test",
    )
    print(f"after {results['global_step']:,} steps, on the {data.test.num_examples:,} test images:")
    print(f"  accuracy {results['accuracy']:.4f}, loss {results['loss']:.4f}")
    print(f"the model is in {classifier.model_dir}/; run the same command again with more --steps")
    print("to train it further")


if __name__ == "__main__":
    main()
