"""The training loop of every task: it knows losses, batches and metrics, and not what they are about."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from piip import rng
from piip.config.experiment import Config
from piip.data.build import build_loader
from piip.data.prefetch import on_device
from piip.data.sets.base import check_classes, check_same_classes, check_targets
from piip.data.workers import explain_worker_death
from piip.engine import distributed
from piip.engine.device import peak_memory_mib, tf32
from piip.engine.evaluate import evaluate
from piip.engine.fingerprint import fingerprint
from piip.engine.log import Bar, RunLog, logging_to
from piip.engine.optim import set_lr, total_iterations
from piip.engine.run_dir import locked, prepare_run
from piip.engine.state import RunState
from piip.engine.step import optimizer_step
from piip.regions import compile_regions
from piip.signals import StopSignals
from piip.weights.find import follow

_log = logging.getLogger(__name__)


def train(
    config: Config,
    *,
    output: Path | None = None,
    device: str | None = None,
    resume: str | None = None,
    weights: Path | None = None,
    partial: bool = False,
) -> Mapping[str, float | None]:
    """Trains the model of a config, under torchrun in all its processes; returns the metrics of the last evaluation.

    output: the run directory, runs/NAME by default; it must not hold a run unless that run is resumed.
    device: 'auto' (or None), 'cpu', 'cuda' or 'cuda:N'.
    resume: 'auto' for the newest checkpoint in output, if there is one, or the path of a checkpoint or run directory.
    A run may be resumed with more epochs or iterations than before.
    weights: a run, a checkpoint or a weight file that a new run starts from, see `piip.engine.fine_tuning.start_from`;
    a run that is resumed has its own. partial: take over what fits of these weights, instead of asking for all.
    Raises Stopped after SIGTERM and KeyboardInterrupt after Ctrl-C: both with a checkpoint saved within one step, or
    without one before the first step. Raises ConfigError while another process uses the run directory, and the other
    kinds of PiipError. Raises NonFiniteLoss where an update would have spoilt the weights, at the latest when the next
    step has been computed, and before that step or any checkpoint uses the weights.
    """
    output = output or Path("runs") / config.name
    with distributed.session(device) as target, locked(output):
        checkpoint = distributed.on_main(lambda: prepare_run(output, config, resume))
        with (
            logging_to(output / "train.log") as console,
            StopSignals() as stop,
            _deterministic(config),
            tf32(config.train.tf32),
        ):
            trainer: Trainer | None = None
            try:
                trainer = Trainer(config, output=output, device=target, stop=stop, console=console)
                return trainer.run(checkpoint, weights, partial=partial)
            except (Exception, KeyboardInterrupt) as error:
                death: Exception | None = distributed.explain_lost_process(error)
                if death is None and isinstance(error, RuntimeError):
                    death = explain_worker_death(error)
                shown = death or error
                _log.error("%s: %s", type(shown).__name__, shown, extra={"at_end": True})
                if death is not None:
                    raise death from None
                raise
            finally:
                if trainer is not None:
                    trainer.close()
                    trainer = None  # it refers to the process group, which ends with the session


class Trainer:
    """One process of a run: its share of the data, its state, and the loop over the steps."""

    def __init__(
        self, config: Config, *, output: Path, device: torch.device, stop: StopSignals, console: Console
    ) -> None:
        self.config, self.output, self.device, self.stop, self.console = config, output, device, stop, console
        rng.seed(config.train.seed)
        with distributed.main_process_first():
            train_data = config.data.train.build(training=True)
            val_data = config.data.val.build(training=False)
        check_classes(config.model.head.num_classes, train_data)
        check_same_classes(train_data, val_data)
        self.metrics = config.chosen_metrics
        pin = device.type == "cuda"
        self.train_loader, self.val_loader = (
            build_loader(config, dataset, training=training, pin_memory=pin, check=self._check_while_waiting)
            for dataset, training in ((train_data, True), (val_data, False))
        )
        self.epoch_length = len(self.train_loader) // config.optim.accumulate
        self.total = total_iterations(config.schedule, self.epoch_length)
        self.state = RunState(
            config,
            device=device,
            root=output / "checkpoints",
            class_names=train_data.class_names,
            epoch_length=self.epoch_length,
            data=distributed.on_main(lambda: {"train": fingerprint(train_data), "val": fingerprint(val_data)}),
        )
        check_targets(config.model.head.needs, train_data)
        self.wrapped: nn.Module = self.state.model
        self.log: RunLog | None = None

    def run(
        self, checkpoint: Path | None, weights: Path | None = None, *, partial: bool = False
    ) -> Mapping[str, float | None]:
        """Trains from the checkpoint, or from the start, to the end. Returns the metrics of the last evaluation."""
        state = self.state
        if checkpoint is None:
            state.start(weights, partial=partial)
        else:
            state.resume(checkpoint)
            if weights is not None:
                _log.info("%s is not read: the run is resumed with weights of its own", weights)
        if self.config.train.compile:
            compile_regions(state.model)
        self.wrapped = state.model
        if distributed.world_size() > 1 and state.sharding is None:
            distributed.synchronize_norms(state.model, self.device)
            distributed.align_gradients(state.model)
            self.wrapped = DistributedDataParallel(state.model, gradient_as_bucket_view=True)
        state.train_mode()
        log = self.log = RunLog(
            self.output, resumed_step=None if checkpoint is None else state.step, evaluated=state.evaluated
        )
        size = sum(parameter.numel() for parameter in state.model.parameters()) / 1e6
        _log.info("%s: %.1f M parameters on %d x %s", self.config.name, size, distributed.world_size(), self.device)
        frozen = sum(p.numel() for p in state.model.parameters() if not p.requires_grad) / 1e6
        if frozen:
            _log.info("%.0f %% of them are frozen", 100 * frozen / size)
        _log.info("%d steps, %d per epoch, from step %d, in %s", self.total, self.epoch_length, state.step, self.output)
        # The run was killed after it had saved this step, but before the evaluation of it was done.
        if checkpoint is not None and not state.evaluated and self._due(self.config.train.eval_every):
            state.save()
            self._evaluate(log)
        self._check_stop()
        with Bar(self.console, "training", total=self.total, done=state.step) as bar:
            while state.step < self.total and not self._stale():
                self._train_epoch(log, bar)
        return state.metrics

    def _check_stop(self) -> None:
        """Ends the run, on all ranks, if one of them received a signal before the first step."""
        requested = distributed.largest(int(self.stop.requested or 0))
        if requested and self.state.step < self.total:
            raise self.stop.error(requested, "stopped before the first step; nothing was saved")

    def close(self) -> None:
        """Ends the loader processes and closes the files."""
        self.train_loader.close()
        self.val_loader.close()
        # The loaders refer back to this object: the cycle would keep the model until Python's next garbage collection.
        del self.train_loader, self.val_loader
        if self.log is not None:
            self.log.close()

    def _train_epoch(self, log: RunLog, bar: Bar) -> None:
        """Trains to the end of the current epoch, or of the run."""
        config, state = self.config, self.state
        epoch, done = divmod(state.step, self.epoch_length)
        self.train_loader.set_epoch(epoch)
        self.train_loader.set_start(done * config.optim.accumulate)
        batches = on_device(self.train_loader, self.device)
        for _ in range(min(self.epoch_length - done, self.total - state.step)):
            lr = set_lr(
                state.optimizer,
                state.step,
                base=config.optim.lr,
                schedule=config.schedule,
                epoch_length=self.epoch_length,
            )
            step = optimizer_step(
                self.wrapped,
                state.optimizer,
                batches,
                config=config.optim,
                device=self.device,
                precision=config.train.precision,
                signal=int(self.stop.requested or 0),
                before_update=state.read,
                sharding=state.sharding,
            )
            state.advance(step, lr)
            logging_due = state.step % config.train.log_every == 0 or state.step == self.total
            evaluating = self._due(config.train.eval_every)
            if logging_due:
                state.read()
            loss = "" if state.loss is None else f"  loss {state.loss:.3f}"
            bar.advance(note=f"epoch {epoch + 1}{loss}")
            if logging_due:
                memory = {"memory_mib": round(peak_memory_mib(self.device))}
                log.train(state.position | state.meter.take() | memory, left=bar.left())
            # The step is saved before its evaluation, which takes so long that the run may be stopped within it.
            if evaluating or step.signal or self._due(config.train.checkpoint_every):
                log.flush()
                state.save()
            if step.signal:
                raise self._stopped(step.signal)
            if evaluating:
                with bar.paused():
                    self._evaluate(log)
                if self._stale():
                    return

    def _check_while_waiting(self) -> None:
        """Ends the run if this process received a signal, during evaluation or while it waits for data.

        The ranks do not agree on it first: when one leaves, the others fail in their next collective call.
        """
        if not self.stop.requested:
            return
        # A single process can still save the finished step, unless the passes of the next one have begun to change
        # random numbers and statistics.
        begun = any(parameter.grad is not None for parameter in self.state.model.parameters())
        if distributed.world_size() == 1 and not begun and self.log is not None:
            self.log.flush()
            self.state.save()
        raise self._stopped(self.stop.requested)

    def _evaluate(self, log: RunLog) -> None:
        # Where batch norms are not synchronised, the ranks have different statistics; those of the main one are saved.
        distributed.share_buffers(self.state.evaluation_model)
        with rng.preserved():
            found = evaluate(
                self.state.evaluation_copy(),
                self.val_loader,
                metrics=self.metrics,
                device=self.device,
                console=self.console,
                check=self._check_while_waiting,
            )
        log.evaluation(self.state.position | {"metrics": found.metrics, "seconds": round(found.seconds, 2)})
        log.draw()
        self.state.record_evaluation(found)

    def _due(self, every: int) -> bool:
        return self.state.step % (every * self._unit) == 0 or self.state.step == self.total

    def _stale(self) -> bool:
        """Whether as many evaluations as `early_stopping` allows have found nothing better; it is told in the log."""
        patience, best = self.config.train.early_stopping, self.state.best
        if patience is None or best is None:
            return False
        stale = self.state.step - best["step"] >= patience * self.config.train.eval_every * self._unit
        if stale:
            told = (patience, best["name"], best["value"], best["step"])
            _log.info("ended early: %d evaluations in a row are no better than %s %.4f of step %d", *told)
        return stale

    @property
    def _unit(self) -> int:
        """Steps in the unit of the schedule."""
        return self.epoch_length if self.config.schedule.epochs is not None else 1

    def _stopped(self, signal: int) -> BaseException:
        at = f"stopped at step {self.state.step} of {self.total}"
        root = self.output / "checkpoints"
        saved = root / str(self.state.step)
        if saved.is_dir():
            return self.stop.error(signal, f"{at}; saved {saved}, go on with --resume")
        last = follow(root, "last")
        remedy = f"go on from {last} with --resume" if last else "nothing was saved yet, start again"
        return self.stop.error(signal, f"{at}, within a step; {remedy}")


@contextmanager
def _deterministic(config: Config) -> Iterator[None]:
    """Switches torch's deterministic algorithms on for the block if the config asks for them."""
    if not config.train.deterministic:
        yield
        return
    mode = torch.get_deterministic_debug_mode()
    # cuBLAS reads this when it is used for the first time, which is later.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)
