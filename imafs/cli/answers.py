# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""How the answers of the control socket read on a terminal.

Whatever is missing or of an unexpected type is left out or shown as it is: the daemon
may be of another version than this program.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping

from imafs.errors import Refused
from imafs.text import counted, shown

_REFUSED = Refused.exit_code


#: Operations that add one record, and what stands before its name.
_SINGLE = {"violation": "violation", "critical_data": "critical data", "repeat": "repeat"}
_DUPLICATE = " (already measured)"
_PENDING = " (in the list, not yet in the PCR: see imafs ctl status)"


def show(
    op: str,
    answer: Mapping[str, object],
    asked: Mapping[str, object] | None = None,
    *,
    as_json: bool,
) -> int:
    """Print ``answer`` to ``op`` with the options ``asked`` on stdout; the exit code."""
    if as_json:
        print(json.dumps(answer))
    elif op == "measure":
        _measured(answer)
    elif op in _SINGLE:
        name = readable((asked or {}).get("name", "of the newest record"))
        if answer.get("measured") is False:
            print(f"not measured  {name} ({readable(answer.get('why', '-'))})")
        else:
            print(f"{_SINGLE[op]}  {name}{_note(answer)}")
    elif op == "status":
        print("\n".join(status_lines(answer)))
    elif op == "hello":
        version, protocol = (readable(answer.get(key, "-")) for key in ("imafs", "protocol"))
        print(f"imafs {version}, protocol {protocol}")
    elif op == "stop":
        print("the daemon unmounts and ends")
    elif op in ("watch", "unwatch"):
        print(f"watched: {_names(answer.get('watched')) or 'nothing'}")
    elif not _booted(op, answer):
        for key, value in answer.items():
            rows = _items(answer, key)
            if isinstance(value, list) and len(rows) == len(value):
                for row in rows:
                    print(_pairs(row))
            elif key != "extended" or op == "wait":
                print(f"{readable(key)}: {readable(value)}")
    if op != "wait" and any(
        i.get("extended") is False for i in (answer, *_items(answer, "measured"))
    ):
        print(
            "imafs: records are in the list, but not yet in the PCRs: the TPM hangs, has failed "
            "or is slow; they stay and are retried (imafs ctl status)",
            file=sys.stderr,
        )
    return 0 if not _failures(op, answer) else _REFUSED


def _note(item: Mapping[str, object]) -> str:
    if item.get("extended") is False:
        return _PENDING
    return _DUPLICATE if item.get("duplicate") is True else ""


def readable(value: object) -> str:
    """``value`` in one line: a name's unprintable characters and odd bytes as escapes."""
    if isinstance(value, str):
        return shown(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "none"
    return str(value) if isinstance(value, int | float) else json.dumps(value)


def _names(value: object) -> str:
    return ", ".join(map(readable, value)) if isinstance(value, list) else readable(value)


def _items(answer: Mapping[str, object], key: str) -> list[Mapping[str, object]]:
    value = answer.get(key)
    return [v for v in value if isinstance(v, dict)] if isinstance(value, list) else []


def _group(answer: Mapping[str, object], key: str) -> Mapping[str, object]:
    value = answer.get(key)
    return value if isinstance(value, dict) else {}


def _failures(op: str, answer: Mapping[str, object]) -> list[Mapping[str, object]]:
    """The paths of a measure that were refused while others were not."""
    return [i for i in _items(answer, "measured") if "error" in i] if op == "measure" else []


def _pairs(row: Mapping[str, object]) -> str:
    return ", ".join(f"{readable(key)} {readable(value)}" for key, value in row.items())


def _measured(answer: Mapping[str, object]) -> None:
    for item in _items(answer, "measured") or [answer]:
        name = readable(item.get("name", item.get("path", "-")))
        if "error" in item:
            text = readable(item["error"])
            code = readable(item.get("errno", ""))
            if code not in text:
                text += f" ({code})"
            print(f"imafs: {text if name in text else f'{name}: {text}'}", file=sys.stderr)
            continue
        if item.get("measured") is False:
            print(f"not measured  {name} ({readable(item.get('why', '-'))})")
            continue
        print(f"{readable(item.get('digest', '-'))}  {name}{_note(item)}")
        if "why" in item:
            print(f"  {readable(item['why'])}")


def status_lines(status: Mapping[str, object]) -> list[str]:
    """The text of ``imafs ctl status``."""

    def word(key: str) -> str:
        return readable(status.get(key, "-"))

    rows = [
        ("imafs", f"{word('version')} on {word('mountpoint')}, profile {word('profile')}"),
        ("template", f"{word('template')}, hash {word('hash')}"),
        *([("process", word("pid"))] if "pid" in status else []),
        ("TPM", word("tcti")),
        ("records", _counts(_group(status, "records"))),
        ("bytes", _counts(_group(status, "bytes"))),
        ("violations", word("violations")),
        ("suspended", word("suspended")),
    ]
    if sizes := _group(status, "sizes"):
        rows.append(("sizes", _sizes(sizes)))
    if "policy" in status:
        rows.append(("policy", _policy(_group(status, "policy"))))
    if boot := _group(status, "boot"):
        rows.append(("boot", boot_line(boot)))
    pending = _group(status, "records").get("pending")
    which = "all records since boot"
    if isinstance(pending, int) and pending:
        which = f"all records but the {pending} pending"
    rows += [("PCR", _pcr(item, which)) for item in _items(status, "pcrs")]
    rows.append(("readers", ", ".join(map(process, _items(status, "readers"))) or "none"))
    writer = _group(status, "writer")
    rows.append(("writer", process(writer) if writer else "none"))
    rows += _watched(_group(status, "watch"))
    rows.append(("failures", _failed(_group(status, "failures"))))
    rows += _on_purpose(status)
    return [shown(f"{name:<11} {text}") for name, text in rows]


def _failed(failures: Mapping[str, object]) -> str:
    count, last = failures.get("extend", "-"), failures.get("last")
    text = f"{counted(count, 'extend')} failed"
    if last is not None:
        known = count or failures.get("refused")
        text += f" (last: {readable(last)})" if known else f"; the TPM: {readable(last)}"
    if refused := failures.get("refused"):
        text += f"; {counted(refused, 'extend')} refused by the TPM: in the list, in no PCR"
    if failures.get("mismatch"):
        text += f"; {readable(failures['mismatch'])}: somebody else extended or reset them"
    return text


def _on_purpose(status: Mapping[str, object]) -> list[tuple[str, str]]:
    """The faults that somebody asked for; nothing where nobody did."""
    unsound = _group(status, "records").get("unsound")
    tampered = f"not sound: {counted(unsound, 'record')} with a wrong template digest, as loaded"
    return [*([("list", tampered)] if unsound else []), *_faults(status)]


def _faults(status: Mapping[str, object]) -> list[tuple[str, str]]:
    rows = [("fault", _pairs(item)) for item in _items(status, "faults")]
    pace = {key: value for key, value in _group(status, "pace").items() if value}
    if skipped := _group(status, "failures").get("skipped"):
        pace["skipped"] = skipped
    if pace:
        rows.append(("extending", f"held up on purpose: {_pairs(pace)}"))
    scenario = _group(status, "scenario")
    if scenario:
        rows.append(("scenario", readable(scenario.get("name", "-"))))
    for item in _items(scenario, "steps"):
        done = f"{counted(item.get('done', '-'), 'time')} done"
        errors = item.get("errors")
        if isinstance(errors, list) and errors:
            done += f", failed: {readable(errors[-1])}"
        rows.append(("  step", f"{readable(item.get('when', '-'))}: {done}"))
    return rows


def _sizes(group: Mapping[str, object]) -> str:
    if group.get("shown") == "zero":
        return "0, as a kernel shows them"
    return f"true, and every read is filled: {readable(group.get('why', '-'))}"


def _policy(group: Mapping[str, object]) -> str:
    if not group:
        return "none: what is asked for is measured"
    text = f"{counted(group.get('rules', '-'), 'rule')}: {readable(group.get('source', '-'))}"
    dead = group.get("without_effect")
    return f"{text} ({readable(dead)} of them have no effect here)" if dead else text


#: Counters of watched files that are shown always, and those shown when they are not 0.
_USES = (("watched", "uses"), ("measured", "measured"), ("violations", "violations"))
_TROUBLES = (
    *("late", "unasked", "lost", "refused", "overflows", "errors", "unmeasured", "restarts"),
)


def _watched(watch: Mapping[str, object]) -> list[tuple[str, str]]:
    paths = watch.get("paths")
    if not isinstance(paths, list) or not paths:
        return []
    words = [_counted(word, watch.get(key, "-")) for key, word in _USES]
    words += [f"{readable(watch[key])} {key}" for key in _TROUBLES if watch.get(key)]
    trouble = watch.get("trouble")
    suffix = f" (last: {readable(trouble)})" if trouble is not None else ""
    running = "" if watch.get("listener") is not None else "DOES NOT ANSWER, "
    names = ", ".join(map(readable, paths))
    reasons = watch.get("left_out")
    left_out = reasons if isinstance(reasons, list) else []
    return [
        ("watched", f"{names}, {_judge(watch.get('policy', '-'))}"),
        *(("  left out", readable(why)) for why in left_out),
        ("listener", f"{running}{', '.join(words)}{suffix}"),
    ]


def _judge(policy: object) -> str:
    known = {"active": "as the policy above says", "tcb": "as tcb says: no policy is active"}
    text = readable(policy)
    return known.get(text, f"policy {text}")


def _counts(group: Mapping[str, object]) -> str:
    words = [_counted(key, value) for key, value in group.items()]
    return ", ".join(words) or "-"


_NOUNS = {"duplicates": "duplicate", "uses": "use", "violations": "violation"}


def _counted(key: str, value: object) -> str:
    if key in _NOUNS and isinstance(value, int):
        return counted(value, _NOUNS[key])
    return f"{readable(value)} {readable(key.replace('_', ' '))}"


def process(item: Mapping[str, object]) -> str:
    """``name[pid]`` of who has a file open."""
    return f"{readable(item.get('name', '-'))}[{readable(item.get('pid', '-'))}]"


def _pcr(item: Mapping[str, object], which: str) -> str:
    value, replayed = readable(item.get("value", "-")), readable(item.get("replayed", "-"))
    text = f"{readable(item.get('pcr', '-'))} {readable(item.get('bank', '-'))}"
    if item.get("value") is None:
        return f"{text}: cannot be read, {which} replay to {replayed}"
    text += f" {value}: "
    if item.get("equal") is True:
        start = " from the value that was adopted" if item.get("adopted") is True else ""
        return text + f"{which} replay to it{start}"
    if item.get("pending") is True:
        return text + "records are still to be extended"
    if item.get("equal") is False:
        return text + f"DIFFERS, {which} replay to {replayed}"
    return text + "not compared"


def _booted(op: str, answer: Mapping[str, object]) -> bool:
    """Prints the answer to a kexec or a reboot; False where ``op`` is none."""
    match op:
        case "kexec_load":
            _say(f"a segment of {answer.get('segment_size', '-')} bytes is reserved")
        case "kexec_execute" | "kexec_finish" if answer.get("held") is True:
            print("held: suspended until imafs ctl kexec-finish")
        case "kexec_execute" | "kexec_finish":
            _say(
                f"{answer.get('profile', '-')} runs, with {answer.get('carried', '-')} of "
                f"{counted(answer.get('records', '-'), 'record')} carried over"
            )
            if answer.get("lost"):
                lost, why = counted(answer["lost"], "record"), answer.get("why")
                print(shown(f"imafs: {lost} in PCRs and in no list: {why}"), file=sys.stderr)
        case "kexec_buffer":
            size, records = answer.get("bytes", "-"), answer.get("records", "-")
            _say(f"{counted(size, 'byte')}, {counted(records, 'record')}")
        case "reboot":
            _say(f"{answer.get('profile', '-')} runs")
        case _:
            return False
    return True


def _say(line: str) -> None:
    """Prints a daemon's answer, whatever is in it."""
    print(shown(line))


def boot_line(group: Mapping[str, object]) -> str:
    """The line ``boot`` of the status; ``group`` is the status' own."""
    text = f"number {group.get('number', '-')}"
    if group.get("kexecs"):
        text += f", {counted(group['kexecs'], 'kexec')}, "
        text += f"{counted(group.get('carried', '-'), 'record')} carried over"
    if group.get("lost"):
        text += f", {group['lost']} LOST"
    if group.get("kexec_held"):
        return f"{text}; a kexec is held: imafs ctl kexec-finish"
    return f"{text}; a kernel is loaded for kexec" if group.get("kexec_loaded") else text
