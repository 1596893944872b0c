"""From arguments to a command, and from its end to an exit code."""

from __future__ import annotations

import functools
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from marl_tr import __version__, registry
from marl_tr.errors import Diverged, Interrupted, UserError
from marl_tr.foreign import own_traceback, raised_inside

__all__ = ["invoke"]

_HELP = (
    "Multi-agent and generative policies trained under a trust region that is measured and kept. "
    "Start with: marl-tr run uav_quick"
)


def invoke(arguments: Sequence[str] | None = None) -> int:
    """Run the command that `arguments` (default: the process's) names; returns its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    # 'my_module:make_env' may lie in the user's folder; last, so that nothing installed is shadowed.
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    try:
        with _plain_warnings():
            _build(given)(args=given, prog_name="marl-tr")
    except SystemExit as exit_:
        return exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    except UserError as error:
        return _say("error", error, 2)
    except Diverged as error:
        return _say("diverged", error, 3)
    except Interrupted as error:
        return _say("interrupted", error, 130)
    except Exception as error:
        return _say_theirs(error)
    return 0


def _build(arguments: list[str]) -> typer.Typer:
    """An application in which the command called is real, and the others are names for the listing."""
    app = typer.Typer(name="marl-tr", no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)
    app.callback(help=_HELP)(_options)
    called = next((argument for argument in arguments if not argument.startswith("-")), None)
    for name, entry in registry.names("commands").items():
        command = _interruptible(entry.load()) if name == called else _listed_only
        summary = f"{entry.summary[:1].upper()}{entry.summary[1:]}."
        if name == called:
            app.command(name, short_help=summary)(command)
        else:
            app.command(name, help=summary)(command)
    return app


def _version(asked: bool) -> None:
    if asked:
        print(f"marl-tr {__version__}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options before the command."""


def _listed_only() -> None:
    """Stands for a command that is not called, so that ``--help`` and suggestions know its name."""


def _interruptible(command: Callable[..., Any]) -> Callable[..., Any]:
    """Ctrl-C and a reader that stops early ('| head') end a command our way, not the command-line library's."""

    @functools.wraps(command)
    def run(*arguments: Any, **options: Any) -> Any:
        try:
            result = command(*arguments, **options)
            sys.stdout.flush()
            return result
        except BrokenPipeError:
            # Nothing more can be written, not even what is buffered when the interpreter exits.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return None
        except KeyboardInterrupt as error:
            raise Interrupted("stopped by the keyboard") from error

    return run


def _say(kind: str, error: Exception, code: int) -> int:
    # Plain text: messages quote file content, which must not be read as markup.
    print(f"{kind}: {error}", file=sys.stderr)
    return code


def _say_theirs(error: Exception) -> int:
    """Show an error in somebody else's code by their frames alone; one in ours goes on as it is."""
    note = raised_inside(error)
    if note is None:
        raise error
    print(f"crash: {type(error).__name__} in {note.where}\n{own_traceback(error)}", file=sys.stderr)
    if note.env_id is not None:
        print(f"'marl-tr check-env {note.env_id}' looks for the cause", file=sys.stderr)
    return 1


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Packages that are left out are told in one line, each once, without the place in our code."""
    told: set[str] = set()
    with warnings.catch_warnings():
        warnings.simplefilter("always", registry.BrokenPackage)
        shown = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: Any, **options: Any) -> None:
            if not issubclass(category, registry.BrokenPackage):
                shown(message, category, *place, **options)
            elif str(message) not in told:
                told.add(str(message))
                print(f"warning: {message}", file=sys.stderr)

        warnings.showwarning = show
        yield
