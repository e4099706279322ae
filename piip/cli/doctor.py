"""`piip doctor`."""

from __future__ import annotations

from dataclasses import asdict

from piip.cli.options import Json

_MARKS = {"info": " ", "ok": "✓", "note": "!", "problem": "✗"}
_STYLES = {"info": "", "ok": "green", "note": "yellow", "problem": "bold red"}


def doctor(json: Json = False) -> None:
    """Show what is installed and usable, and check every op against its definition."""
    from rich.text import Text

    from piip.cli.console import out, print_json
    from piip.doctor import examine
    from piip.errors import CheckError

    findings = examine()
    problems = sum(finding.status == "problem" for finding in findings)
    if json:
        print_json({"ok": not problems, "findings": [asdict(finding) for finding in findings]})
    else:
        console, group = out(), ""
        for finding in findings:
            if finding.group != group:
                group = finding.group
                console.print(group, style="bold")
            mark = Text(_MARKS[finding.status], style=_STYLES[finding.status])
            console.print(mark, f"{finding.name:22}", Text(finding.value, style=_STYLES[finding.status]))
        console.print()
    if problems:
        raise CheckError(f"{problems} {'problem' if problems == 1 else 'problems'} found, marked above")
