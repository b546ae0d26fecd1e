"""Shell commands as tasks: each runs in a directory of its own, and its files are its result."""

from __future__ import annotations

import itertools
import os
import shlex
import string
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exadask.errors import CommandFailed, InvalidRequest, OutputMissing, shown
from exadask.files import File
from exadask.rank_launcher import check_launcher
from exadask.ranks import parse_ranks
from exadask.runtime.ranks import Layout, prefix
from exadask.tasks import OF_RANKS, Task, TaskOptions

if TYPE_CHECKING:
    from exadask.future import Future

_TAIL_BYTES = 4000
_ECHO_BYTES = 65536
_FOLDER = "exadask-commands"
_WORKDIR = "workdir"
_MOST_SIZES = 1000
_PREFIX = "EXADASK_MPIEXEC"


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandResult:
    """How a command ended.

    Parameters
    ----------
    command : str
        What the shell ran.
    exit_code : int
        Its exit code; minus the signal if one killed it.
    directory : Path
        Where it ran; everything that it wrote is there.
    outputs : dict of str to tuple of Path
        The files that were declared as its outputs, by their names.
    """

    command: str
    exit_code: int
    directory: Path
    outputs: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)
    _sizes: Mapping[str, int] = field(default_factory=dict, repr=False)

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that it left in its directory, sorted."""
        return tuple(sorted(path for path in self.directory.rglob("*") if path.is_file()))

    @property
    def is_whole(self) -> bool:
        """Whether the files that it left are still there, each as large as it was."""
        try:
            return all(
                (self.directory / name).stat().st_size == size for name, size in self._sizes.items()
            )
        except OSError:
            return False

    @property
    def stdout(self) -> str:
        """What it wrote to standard output and did not redirect."""
        return (self.directory / "stdout").read_text(errors="replace")

    @property
    def stderr(self) -> str:
        """What it wrote to standard error and did not redirect."""
        return (self.directory / "stderr").read_text(errors="replace")


def command(
    template: str,
    *,
    check: bool = True,
    directory: str | os.PathLike[str] | None = None,
    outputs: Mapping[str, str] | None = None,
    launcher: str | None = None,
    **options: Any,
) -> Command:
    """Make a shell command a task.

    Parameters
    ----------
    template : str
        The command, run by ``/bin/sh``. ``{name}`` stands for a value given to ``submit``; values
        are quoted. ``{workdir}`` is the directory where it runs. Write ``{{`` and ``}}`` for braces
        of the shell's own.
    check : bool
        Whether an exit code other than zero is an error.
    directory : path, optional
        Where all its calls run. None: each in a new directory under ``exadask-commands``; values
        that are paths of existing files are then given as absolute paths.
    outputs : mapping of str to str, optional
        Files that it must leave, by names of your own: patterns below its directory, such as
        ``{"log": "*.log", "frames": "out/**/*.xyz"}``. Where one matches nothing, it has failed.
    launcher : str, optional
        What starts the ranks of an MPI program; see `exadask.mpi_task.mpi`.
    **options
        As for `exadask.task`. With ``ranks``, ``cores_per_rank``, ``gpus_per_rank`` or
        ``memory_per_rank`` it is an MPI program, and its ranks run as `exadask.mpi_task.mpi` says.
        A command that mentions ``$EXADASK_MPIEXEC`` starts its ranks itself, with these words
        before the program.

    Returns
    -------
    Command
        Call it to run it here, ``submit`` it to run it as a task; the result is a `CommandResult`.

    Raises
    ------
    InvalidRequest
        The template or an option makes no sense.

    Examples
    --------
    >>> import os, tempfile
    >>> hello = command("echo hello {name}", directory=tempfile.gettempdir())
    >>> hello.fields
    ('name',)
    """
    if not isinstance(template, str) or not template.strip():
        raise InvalidRequest(f"command() got {template!r}.", "Give the command as a text.")
    if directory is not None and not isinstance(directory, (str, os.PathLike)):
        raise InvalidRequest(f"directory={directory!r} is not valid.", "Give a path.")
    check_launcher(launcher)
    wanted = _checked_outputs(outputs)
    layout, said = None, {"name": _program(template), **options}
    if launcher is not None or any(name in options for name in OF_RANKS):
        layout, parsed = parse_ranks(said)
    else:
        parsed = TaskOptions.parse(said)
    shell = _Shell(
        template=template,
        fields=fields_of(template),
        check=check,
        directory=None if directory is None else str(directory),
        outputs=wanted,
        layout=layout,
        launcher=launcher,
    )
    return Command(shell, parsed)


class Command(Task[Any, CommandResult]):
    """A shell command that can be run here, or submitted; made by `command`."""

    def __init__(self, shell: _Shell, options: TaskOptions) -> None:
        self._shell = shell
        super().__init__(shell, options)

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the values that it needs."""
        return self._shell.fields

    def with_options(self, **options: Any) -> Command:
        """Return the same command with other options; for one with ranks also those."""
        shell = self._shell
        if shell.layout is None:
            return Command(shell, TaskOptions.parse(options, self.options))
        layout, parsed = parse_ranks(options, shell.layout, self.options)
        return Command(shell.with_layout(layout), parsed)

    def submit(self, /, *args: Any, **values: Any) -> Future[CommandResult]:
        """Run the command as a task of the active executor.

        Parameters
        ----------
        **values
            One for each field; futures become their values.

        Raises
        ------
        InvalidRequest
            A value is missing, or belongs to no field.
        """
        self._shell.check_values(args, values)
        return super().submit(**values)

    def map(
        self, /, *iterables: Iterable[Any], progress: bool = False
    ) -> list[Future[CommandResult]]:
        """Submit one task for each mapping of values.

        Parameters
        ----------
        *iterables : iterable of dict
            The values of each call.
        progress : bool
            Whether to show a progress bar while they run.
        """
        from exadask.active import active_executor

        calls = [values for iterable in iterables for values in iterable]
        for values in calls:
            if not isinstance(values, Mapping):
                raise InvalidRequest(
                    f"map() of a command got {values!r}.", "Give dicts: [{'xyz': path}, ...]."
                )
            self._shell.check_values((), values)
        by_mapping: Task[Any, CommandResult] = Task(_ByMapping(self._shell), self.options)
        return active_executor(self.name).map_task(by_mapping, [calls], progress=progress)


class _Shell:
    """What runs the command, wherever that is."""

    def __init__(
        self,
        *,
        template: str,
        fields: tuple[str, ...],
        check: bool,
        directory: str | None,
        outputs: tuple[tuple[str, str], ...],
        layout: Layout | None,
        launcher: str | None,
    ) -> None:
        self.template, self.fields = template, tuple(one for one in fields if one != _WORKDIR)
        self.check, self.directory, self.outputs = check, directory, outputs
        self.layout, self.launcher = layout, launcher
        self.__name__ = _program(template)

    def with_layout(self, layout: Layout) -> _Shell:
        """Give the same for other ranks."""
        return _Shell(
            template=self.template,
            fields=self.fields,
            check=self.check,
            directory=self.directory,
            outputs=self.outputs,
            layout=layout,
            launcher=self.launcher,
        )

    @staticmethod
    def is_whole(result: object) -> bool:
        """Whether a result of an earlier run is still what it was."""
        return isinstance(result, CommandResult) and result.is_whole

    def check_values(self, args: tuple[Any, ...], values: Mapping[str, Any]) -> None:
        if args:
            raise InvalidRequest(
                f"command {self.template!r} got values without names: {args!r}.",
                f"Give them by name: {', '.join(self.fields) or 'it needs none'}.",
            )
        missing = [name for name in self.fields if name not in values]
        unknown = [name for name in values if name not in self.fields]
        if missing or unknown:
            raise InvalidRequest(
                f"command {self.template!r} needs the values {list(self.fields)} and got "
                f"{list(values)}.",
                f"Missing: {missing}. Unknown: {unknown}.",
            )

    def __call__(self, *args: Any, **values: Any) -> CommandResult:
        self.check_values(args, values)
        directory = self._directory()
        texts = {name: shlex.quote(text_of(value)) for name, value in values.items()}
        line = self.template.format(**texts, **{_WORKDIR: shlex.quote(str(directory))})
        run, environment = line, None
        if self.layout is not None:
            words, environment = prefix(self.layout, self.launcher)
            environment[_PREFIX] = shlex.join(words)
            run = line if _PREFIX in self.template else f"${_PREFIX} {line}"
        with (directory / "stdout").open("wb") as out, (directory / "stderr").open("wb") as err:
            ended = subprocess.run(
                ["/bin/sh", "-c", run],
                cwd=directory,
                stdout=out,
                stderr=err,
                env=environment,
                check=False,
            )
        found = {name: tuple(sorted(directory.glob(one))) for name, one in self.outputs}
        result = CommandResult(
            command=line,
            exit_code=ended.returncode,
            directory=directory,
            outputs=found,
            _sizes=_sizes_below(directory) if self.directory is None else {},
        )
        sys.stdout.write(_tail(directory / "stdout", _ECHO_BYTES))
        sys.stderr.write(_tail(directory / "stderr", _ECHO_BYTES))
        if self.check and ended.returncode != 0:
            tail = _tail(directory / "stderr", _TAIL_BYTES)
            raise CommandFailed(line, ended.returncode, str(directory), tail)
        for name, pattern in self.outputs:
            if self.check and not found[name]:
                there = [path.name for path in sorted(directory.iterdir())]
                raise OutputMissing(line, f"{name}={pattern!r}", str(directory), tuple(there))
        return result

    def _directory(self) -> Path:
        if self.directory is not None:
            given = Path(self.directory).absolute()
            given.mkdir(parents=True, exist_ok=True)
            return given
        home = Path(_FOLDER).absolute()
        home.mkdir(exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f"{self.__name__}-", dir=home))


class _ByMapping:
    """Takes the values as one mapping."""

    def __init__(self, shell: _Shell) -> None:
        self._shell = shell
        self.is_whole = shell.is_whole

    def __call__(self, values: Mapping[str, Any]) -> CommandResult:
        return self._shell(**values)


def _checked_outputs(outputs: object) -> tuple[tuple[str, str], ...]:
    if outputs is None:
        return ()
    if not isinstance(outputs, Mapping):
        raise InvalidRequest(
            f"outputs={shown(outputs)} is not valid.", 'Give a dict: outputs={"log": "*.log"}.'
        )
    for name, pattern in outputs.items():
        is_text = isinstance(name, str) and isinstance(pattern, str) and bool(pattern)
        if not is_text or Path(pattern).is_absolute() or ".." in Path(pattern).parts:
            raise InvalidRequest(
                f"outputs has {shown(name)}: {shown(pattern)}.",
                "Give names and patterns below the directory of the command, such as '*.log'.",
            )
    return tuple(outputs.items())


def _sizes_below(directory: Path) -> dict[str, int]:
    """Say how large the files of a directory are; of very many, some."""
    files = (path for path in directory.rglob("*") if path.is_file())
    some = itertools.islice(files, _MOST_SIZES)
    return {str(path.relative_to(directory)): path.stat().st_size for path in some}


def fields_of(template: str) -> tuple[str, ...]:
    """Name the values that a template needs.

    Raises
    ------
    InvalidRequest
        It has a brace without its partner, or a field that is no name.
    """
    try:
        fields = [field for field in string.Formatter().parse(template) if field[1] is not None]
        names = [str(name) for _, name, _, _ in fields]
        nested = {str(name) for _, name, form, _ in fields if form}
    except ValueError as error:
        raise InvalidRequest(
            f"command {template!r} has a brace without its partner ({error}).",
            "Write {{ and }} for braces of the shell's own.",
        ) from error
    for name in names:
        if not name.isidentifier() or name in nested:
            raise InvalidRequest(
                f"command {template!r} has the field {{{name}}}, which is not a name.",
                "Write {{ and }} for braces of the shell's own.",
            )
    return tuple(dict.fromkeys(names))


def text_of(value: Any) -> str:
    """Write a value for the shell: of files and results the absolute path."""
    if isinstance(value, CommandResult):
        return str(value.directory)
    if isinstance(value, File):
        return str(Path(value.path).absolute())
    if isinstance(value, os.PathLike) or (isinstance(value, str) and _is_file(value)):
        return str(Path(value).absolute())
    return str(value)


def _is_file(text: str) -> bool:
    try:
        return Path(text).exists()
    except (OSError, ValueError):  # too long for a name, or with a zero byte
        return False


def _program(template: str) -> str:
    return Path(template.split()[0]).name.strip("{}") or "command"


def _tail(path: Path, n_bytes: int) -> str:
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - n_bytes))
        return file.read().decode(errors="replace")
