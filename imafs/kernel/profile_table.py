# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The comparison of profiles that ``imafs profiles`` prints.

What can be read from a profile is read; what a request is answered with is played on a
queue of a few records, so that the table cannot differ from what is served.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping

from imafs.interface.grammar import Digits, Grammar, Operation, Request, Staging, Totalled
from imafs.interface.kstrtox import ULONG_MAX
from imafs.interface.profiles.model import Profile
from imafs.interface.profiles.table import PROFILES
from imafs.kernel.profile_play import NOTHING, RECORDS, Play, grammars, of_number, taking

_SERIES = (
    ("The staging series", ("mainline", "v5", "v4", "v3", "rfc-v2", "rfc-v1", "snap")),
    ("The trim series", ("trim-v5", "trim-v4", "trim-v3", "trim-v2", "trim-v1")),
    (
        "Export, flush, PCR values",
        ("pcrs-2025", "flush-2020", "export-2020", "export-2019", "export-rfc"),
    ),
    ("Kernels before", ("legacy", "legacy-single")),
)


def series() -> list[tuple[str, list[Profile]]]:
    """All profiles by series, each under its title."""
    by_name = {profile.name: profile for profile in PROFILES}
    return [(title, [by_name[name] for name in names]) for title, names in _SERIES]


def _mode(mode: int) -> str:
    return f"{mode:04o}"


def _files(p: Profile) -> str:
    names = [file.name for file in p.requests]
    names = [f"{file.directory}/{file.name}".lstrip("/") for file in p.requests] or names
    if p.staged is not None:
        names.insert(0, p.staged.name.format(form="ascii", bank="ALG"))
    return ", ".join(names) or NOTHING


def _modes(p: Profile) -> str:
    extra = [p.staged.mode] if p.staged is not None else []
    return ", ".join(_mode(m) for m in (*extra, *(f.mode for f in p.requests))) or NOTHING


def _link(p: Profile) -> str:
    if p.staged is None or p.staged.link is None:
        return NOTHING
    target = p.staged.name.format(form="ascii", bank="sha1")
    return f"{p.staged.link.format(form='ascii')} -> {target}"


def _option(p: Profile) -> str:
    return NOTHING if p.option is None else f"{p.option} (default {'ny'[p.option_default]})"


def _requests(p: Profile) -> str:
    parts = []
    if p.current.grammar is not None:
        parts.append(f"{p.current.grammar.text} on the originals")
    if p.staged is not None and p.staged.grammar is not None:
        parts.append(f"{p.staged.grammar.text} on the staged files")
    parts += [f.grammar.text for f in p.requests if f.grammar is not None]
    return "; ".join(parts) or NOTHING


_MEANING = {
    Operation.STAGE: "stages the first N",
    Operation.DELETE_STAGED: "deletes the first N staged, the rest goes back",
    Operation.DELETE_FIRST: "deletes the first N",
}


def _means(p: Profile) -> str:
    operation = _counted(p)
    return NOTHING if operation is None else _MEANING[operation]


def _counted(p: Profile) -> Operation | None:
    grammar = of_number(p)
    return None if grammar is None else grammar.counted


def _minus(p: Profile) -> str:
    grammar = of_number(p)
    if isinstance(grammar, Staging) and grammar.minus is not None:
        return _MEANING[grammar.minus]
    answers = [Play(p).bytes(b"-%d\n" % number) for number in (1, 5)]
    return "errno N" if answers == ["EPERM", "EIO"] else answers[0]


def _base(p: Profile) -> str:
    grammar = of_number(p)
    if grammar is None:
        return NOTHING
    data = b"0:010" if isinstance(grammar, Totalled) else b"010"
    play = Play(p, 12)
    answer = play.bytes(data if isinstance(grammar, Digits) else data + b"\n")
    return "0" if (answer, len(play.queue.current)) == ("ok", 4) else "10"


def _after(p: Profile, do: Callable[[Play], str], show: Callable[[Play], str]) -> str:
    """The result of ``show`` after ``do``; nothing where ``do`` is no request of the profile."""
    play = Play(p)
    return show(play) if do(play) == "ok" else NOTHING


def _removes(play: Play) -> str:
    """Everything, by the profile's own way: A and D, or a number."""
    if play.stage() == "ok":
        return play.delete()
    return play.number(RECORDS)


def _dedup(p: Profile, *, flush: bool) -> str:
    if flush and not p.flush_htable:
        return NOTHING
    if p.export is not None or not grammars(p) or Play(p).number(1) == NOTHING == Play(p).stage():
        return "forgotten" if p.export is not None or p.requests else NOTHING
    play = Play(p, flush=flush)
    return play.again() if _removes(play) == "ok" else NOTHING


def _suspended(p: Profile) -> str:
    """A with nothing staged; D and N with both lists filled; all while suspended."""
    answers = []
    for word, prepare, ask in (
        ("A", False, Play.stage),
        ("D", True, Play.delete),
        ("N", _number_is_of_staged(p), lambda play: play.number(1)),
    ):
        play = Play(p)
        if prepare and play.stage() == "ok":
            play.add()
        play.queue.suspended = True
        play.queue.note_copy()
        answer = ask(play)
        if answer != NOTHING:
            answers.append(f"{word} {answer}")
    return ", ".join(answers) or NOTHING


def _number_is_of_staged(p: Profile) -> bool:
    return _counted(p) is Operation.DELETE_STAGED


def _staged_number(p: Profile, number: int) -> str:
    """N where it has its use: with something staged, if it is about that."""
    play = Play(p)
    if _number_is_of_staged(p):
        play.stage()
    return play.number(number)


def _flush_number(p: Profile) -> str:
    if not p.flush_htable:
        return NOTHING
    play = Play(p, flush=True)
    if _number_is_of_staged(p):
        play.stage()
    return play.number(2)


def _while_staged(p: Profile) -> str:
    play = Play(p)
    if play.stage() != "ok":
        return NOTHING
    play.add()
    play.add()
    return play.number(1)


def _ten_or_all(p: Profile) -> tuple[Grammar, Request] | None:
    """A request that is taken: of ten records, or where there are no numbers of all."""
    grammar = of_number(p)
    if grammar is not None and grammar.counted is not None:
        return grammar, Request(grammar.counted, 10)
    request = Request(Operation.STAGE)
    grammar = taking(p, request)
    return None if grammar is None else (grammar, request)


def _newline(p: Profile) -> str:
    found = _ten_or_all(p)
    words = None if found is None else found[0].spell(found[1])
    if found is None or words is None:
        return NOTHING
    data = words.rstrip(b"\n")
    answers = [Play(p, 12).carry_out(found[0], data + end, 0) for end in (b"", b"\n")]
    return {
        ("ok", "ok"): "may be left out",
        ("ok", "EINVAL"): "EINVAL",
    }.get((answers[0], answers[1]), "needed")


def _position(p: Profile) -> str:
    found = _ten_or_all(p)
    answer = NOTHING if found is None else Play(p, 12).write(*found, position=1)
    return answer.replace("ok", "ignored")


def _count(play: Play) -> str:
    return str(play.queue.count)


def _limit(p: Profile) -> str:
    grammar = of_number(p)
    if grammar is not None and grammar.longest < 20:
        return NOTHING
    play = Play(p)
    if _number_is_of_staged(p):
        play.stage()
    answer = play.number(ULONG_MAX)
    everything = isinstance(grammar, Staging) and grammar.everything
    return "all" if everything == ULONG_MAX and answer == "ok" else answer


def _writer(p: Profile) -> str:
    if p.current.opening.writing is None and not any(f.opening.writing for f in p.requests):
        return "not counted"
    return "ok, the same thread" if p.same_writer else "EBUSY"


def _capability(p: Profile) -> str:
    openings = [p.current.opening, *(f.opening for f in p.requests)]
    if p.staged is not None:
        openings.append(p.staged.opening)
    when = [
        ("reading", any(o.reading_needs_admin for o in openings)),
        ("writing", any(o.writing_needs_admin for o in openings)),
        ("each write", any(o.write_takes_admin for o in openings)),
    ]
    return ", ".join(word for word, needed in when if needed) or NOTHING


def _shows(p: Profile) -> str:
    return "; ".join(file.shows.value for file in p.requests if file.shows) or NOTHING


def _event(p: Profile) -> str:
    event = p.rules.event
    if event is None:
        return NOTHING
    form = event.form.decode().replace("%d", "NS", 1).replace("%d", "N")
    return f"{form} (N: {event.number.value})"


def _export(p: Profile) -> str:
    export = p.export
    if export is None:
        return NOTHING
    words = [f"mode {_mode(export.mode)}"]
    words.append(
        f"replaced at first, then {'it must be new' if export.exclusive else 'appended to'}"
    )
    return ", ".join(words)


def _trigger(p: Profile) -> str:
    if p.export is None:
        return NOTHING
    if not p.export.limit:
        return "each write"
    by_itself = ", then by itself" if p.export.automatic else ""
    return f"a write, above {p.export.limit} records{by_itself}"


def _failure(p: Profile) -> str:
    if p.export is None:
        return NOTHING
    return "its own errno" if p.export.failure is None else errno.errorcode[p.export.failure]


def _bugs(p: Profile) -> str:
    return (
        "; ".join(
            f"{bug.what} ({'--draft-bugs' if bug.played else 'not played'}; else: {bug.instead})"
            for bug in p.bugs
        )
        or NOTHING
    )


#: Title of each row and how it is had from a profile.
ROWS: Mapping[str, Callable[[Profile], str]] = {
    "from": lambda p: p.origin,
    "answers are": lambda p: p.source.value,
    "files": _files,
    "their mode": _modes,
    "originals": lambda p: "one per bank, links" if p.current.per_bank else "SHA-1 only, no links",
    "mode of the originals": lambda p: _mode(p.current.mode),
    "link": _link,
    "option": _option,
    "requests": _requests,
    "N": _means,
    "-N": _minus,
    "base of N": _base,
    "newline": _newline,
    "position above 0": _position,
    "N = 0": lambda p: _staged_number(p, 0),
    "N = 2^64-1": _limit,
    "N too large": lambda p: _staged_number(p, RECORDS + 1),
    "N with ima_flush_htable": _flush_number,
    "N while something is staged": _while_staged,
    "A twice": lambda p: _after(p, Play.stage, Play.stage),
    "A on an empty list": lambda p: Play(p, 0).stage(),
    "D, nothing staged": lambda p: Play(p).delete(),
    "reading, nothing staged": lambda p: (
        NOTHING
        if p.staged is None
        else ("end of file" if p.staged.empty is None else errno.errorcode[p.staged.empty])
    ),
    "reading the file": _shows,
    "CAP_SYS_ADMIN is asked for": _capability,
    "a writer opens again": _writer,
    "too many readers": lambda p: "ENFILE" if p.reader_limit else NOTHING,
    "count after A of 5": lambda p: _after(p, Play.stage, _count),
    "count after all 5 are removed": lambda p: _after(p, _removes, _count),
    "a removed record again": lambda p: _dedup(p, flush=False),
    "the same with ima_flush_htable": lambda p: _dedup(p, flush=True),
    "while suspended for kexec": _suspended,
    "kexec carries the staged list": lambda p: (
        NOTHING if p.staged is None else ("yes" if p.kexec.staged else "no")
    ),
    "kexec copies the list at": lambda p: "load" if p.kexec.at_load else "execute",
    "kexec is measured": lambda p: "load, execute" if p.kexec.measured else "no",
    "record of a trim": _event,
    "export": _trigger,
    "target file": _export,
    "a failed export": _failure,
    "known bugs": _bugs,
}


def facts(profile: Profile) -> dict[str, str]:
    """The rows of one profile, in order; :data:`NOTHING` where there is nothing to say."""
    return {title: show(profile) for title, show in ROWS.items()}
