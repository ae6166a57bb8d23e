"""The commands: parse, call `privshard.api`, print."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from enum import StrEnum
from types import ModuleType
from typing import TYPE_CHECKING, Annotated

import typer

from privshard.cli import cluster, decompose, edit, exporting, gift, render, render_audit, render_runs, tuning
from privshard.cli.errors import usage_failure
from privshard.cli.frame import Frame, show_failure
from privshard.cli.options import DebugOption, HtmlOption, JsonOption, OverridesOption, WorkspaceArgument
from privshard.cli.sweep import sweep
from privshard.core.errors import VerificationError

if TYPE_CHECKING:
    from privshard.api.recipe import Recipe

UsageError: type[Exception] = typer.BadParameter.__bases__[0]  # of whichever click this typer carries

app = typer.Typer(
    name="privshard",
    help="Fine-tune vision transformers on personal data so that any part of what was learned can be taken out again.",
    epilog="Exit codes: 0 done, 1 internal error, 2 bad input, 3 budget refused, 4 resources missing, "
    "5 verification failed. Progress goes to stderr.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


app.add_typer(gift.app, name="gift")
app.add_typer(edit.app)
app.command()(exporting.export)


class Mode(StrEnum):
    """How a removal is carried out."""

    auto = "auto"
    drop = "drop"
    retrain = "retrain"


class AuditKind(StrEnum):
    """Which attack an audit runs."""

    step = "step"
    run = "run"
    removal = "removal"


class Question(StrEnum):
    """What the planner can be asked."""

    retrains = "retrains"
    epsilon = "epsilon"
    noise = "noise"


def run(arguments: Sequence[str] | None = None) -> int:
    """Parse `arguments`, run the command, and return the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return app(args=given, prog_name="privshard", standalone_mode=False) or 0
    except UsageError as error:
        if "--json" not in given:
            error.show()  # pyright: ignore[reportAttributeAccessIssue]
            return error.exit_code  # pyright: ignore[reportAttributeAccessIssue]
        failure = usage_failure(error)
        show_failure(failure, as_json=True, stdout=sys.stdout)
        return failure.exit_code


def _print_version(value: bool) -> None:
    if value:
        from privshard import __version__

        typer.echo(f"privshard {__version__}")
        raise typer.Exit()


def _api() -> ModuleType:
    """`privshard.api`, imported when a command runs: --help needs none of it."""
    from privshard import api

    return api


def _recipe(path: str | None, overrides: list[str] | None) -> Recipe:
    from privshard.api.recipe import Recipe

    return Recipe.load(path, overrides=overrides or ())


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def train(
    recipe: Annotated[
        str | None, typer.Argument(metavar="RECIPE", help="YAML file; without one, the embedded example.")
    ] = None,
    workspace: Annotated[
        str, typer.Option("--workspace", "-w", help="Directory or URI to train into.")
    ] = "./privshard-workspace",
    overrides: OverridesOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print the plan and its price.")] = (False),
    address: Annotated[
        str | None,
        typer.Option(
            "--address", help="Where shards run: local, none, auto, HOST:PORT, ray://HOST:PORT (ray.address)."
        ),
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="Leave the training to a controller on the cluster, and come back.")
    ] = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> int:
    """Train one component a shard and compose them; the same recipe again resumes or returns what is there."""
    frame = Frame("train", as_json=as_json, debug=debug, resumes=True)
    overrides = [*(overrides or ()), *([f"ray.address={address}"] if address else [])]
    if detach and not dry_run:
        return frame.execute(
            lambda on_progress: _api().train_detached(
                _recipe(recipe, overrides), workspace=workspace, on_progress=on_progress
            ),
            show=render_runs.detached,
        )
    if dry_run:
        return frame.execute(
            lambda _: _api().plan_training(_recipe(recipe, overrides), workspace=workspace), show=render.plan
        )
    return frame.execute(
        lambda on_progress: _api().train(_recipe(recipe, overrides), workspace=workspace, on_progress=on_progress),
        show=render.train,
    )


app.command()(tuning.tune)


@app.command()
def forget(
    workspace: WorkspaceArgument,
    subject: Annotated[str, typer.Option("--subject", "-s", help="The person to forget, as named in the data.")],
    mode: Annotated[
        Mode, typer.Option(help="drop removes the shard's component; retrain learns it anew without the subject.")
    ] = Mode.auto,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print the plan and its price.")] = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> int:
    """Take a subject out of the data, the model and everything derived from them."""
    frame = Frame("forget", as_json=as_json, debug=debug, resumes=True)
    return frame.execute(
        lambda on_progress: _api().forget(
            workspace, subject=subject, mode=mode.value, dry_run=dry_run, on_progress=on_progress
        ),
        show=render.forget,
    )


@app.command()
def budget(
    workspace: WorkspaceArgument,
    what_if: Annotated[
        Question | None,
        typer.Option(
            "--what-if",
            help="retrains: how many more at this noise? epsilon: what would --retrains more have spent? noise: how "
            "much would --retrains more need?",
        ),
    ] = None,
    retrains: Annotated[
        int | None, typer.Option("--retrains", metavar="K", help="For --what-if epsilon or noise; one unless given.")
    ] = None,
    noise_multiplier: Annotated[
        float | None, typer.Option("--noise-multiplier", metavar="Z", help="Another noise than the plan's.")
    ] = None,
    group_sizes: Annotated[
        list[int] | None,
        typer.Option("--group-size", metavar="K", help="What a subject with K examples is promised; may be repeated."),
    ] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> int:
    """Show what every shard has spent of its privacy budget, what is left, and what more would need."""
    frame = Frame("budget", as_json=as_json, debug=debug)
    given = {
        "what_if": what_if and what_if.value,
        "retrains": retrains,
        "noise_multiplier": noise_multiplier,
        "group_sizes": group_sizes,
    }
    asked = {name: value for name, value in given.items() if value is not None}
    return frame.execute(lambda _: _api().budget(workspace, **asked), show=render.budget)


@app.command()
def influence(
    workspace: WorkspaceArgument,
    html: HtmlOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> int:
    """Show what each component does to the model."""
    frame = Frame("influence", as_json=as_json, debug=debug)
    return frame.execute(lambda _: _api().influence(workspace, html=html), show=render.influence)


@app.command()
def predict(
    workspace: WorkspaceArgument,
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Image files.")],
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> int:
    """Classify images with the current model."""
    frame = Frame("predict", as_json=as_json, debug=debug)
    return frame.execute(lambda _: _api().predict(workspace, images), show=render.predict)


@app.command()
def evaluate(workspace: WorkspaceArgument, as_json: JsonOption = False, debug: DebugOption = False) -> int:
    """Measure the current model on the held-out rows."""
    frame = Frame("evaluate", as_json=as_json, debug=debug)
    return frame.execute(lambda _: _api().evaluate(workspace), show=render.evaluate)


@app.command()
def verify(workspace: WorkspaceArgument, as_json: JsonOption = False, debug: DebugOption = False) -> int:
    """Check that what is stored says what it should; exit status 5 where it does not."""
    frame = Frame("verify", as_json=as_json, debug=debug)
    failed = VerificationError.exit_code
    return frame.execute(
        lambda _: _api().verify(workspace), show=render.verify, status=lambda result: 0 if result["ok"] else failed
    )


@app.command()
def audit(
    workspace: WorkspaceArgument,
    kind: Annotated[
        AuditKind,
        typer.Option(help="step attacks every release; run, finished components; removal, models before and after."),
    ] = AuditKind.step,
    canaries: Annotated[int | None, typer.Option(metavar="N", help="How many canaries; more prove more.")] = None,
    confidence: Annotated[float, typer.Option(help="Confidence of the lower bound.")] = 0.95,
    html: HtmlOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> int:
    """Attack the workspace's privacy claim with canaries; exit status 5 where the claim does not survive."""
    frame = Frame("audit", as_json=as_json, debug=debug)
    failed = VerificationError.exit_code
    return frame.execute(
        lambda on_progress: _api().audit(
            workspace, kind=kind.value, canaries=canaries, confidence=confidence, html=html, on_progress=on_progress
        ),
        show=render_audit.audit,
        status=lambda result: 0 if result["ok"] else failed,
    )


@app.command(name="import")
def import_folder(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="One folder of images for each class.")],
    out: Annotated[str, typer.Option("--out", "-o", metavar="FILE", help="The Parquet file to write.")],
    subject_from: Annotated[
        str | None, typer.Option("--subject-from", metavar="REGEX", help="Its group in a path is the subject.")
    ] = None,
    split_from: Annotated[
        str | None, typer.Option("--split-from", metavar="REGEX", help="Its group in a path is the split.")
    ] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> int:
    """Turn class folders of images into the Parquet file that a recipe names."""
    frame = Frame("import", as_json=as_json, debug=debug)
    return frame.execute(
        lambda _: _api().import_folder(folder, out=out, subject_from=subject_from, split_from=split_from),
        show=render.imported,
    )


app.command(name="sweep")(sweep)
decompose.add_to(app)
cluster.mount(app)
