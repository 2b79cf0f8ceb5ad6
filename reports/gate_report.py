"""How a gate's verdict is told: to a terminal, to JUnit readers, to GitHub, in Markdown."""

import os
from pathlib import Path
from xml.etree import ElementTree

from reports.gate import Answer, Finding, Verdict
from reports.report import markdown, writing_into
from reports.run import visible


def write_files(verdict: Verdict, folder: Path) -> None:
    """Write `gate.xml` (JUnit) and `gate.md`.

    Raises:
        UserError: The folder cannot be written.
    """
    with writing_into(folder) as write:
        write("gate.xml", junit(verdict))
        write("gate.md", markdown_summary(verdict))


def tell_github(verdict: Verdict) -> str:
    """Return annotations, and add the summary to the job's page, where GitHub runs the gate."""
    if os.environ.get("GITHUB_ACTIONS") != "true":
        return ""
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    if summary:
        with Path(summary).open("a", encoding="utf-8") as stream:
            stream.write(markdown_summary(verdict))
    return github_annotations(verdict)


def plain(verdict: Verdict) -> str:
    """Return a line per guarantee for a terminal, and the sum."""
    lines = [f"{x.answer:<12}  {visible(x.claim.name)}: {x.sentence}" for x in verdict.findings]
    return "\n".join([*lines, f"The gate: {verdict.answer} ({verdict.sentence})."])


def markdown_summary(verdict: Verdict) -> str:
    """Return a table with a row per guarantee."""
    lines = [
        f"## Privacy gate: {verdict.answer}",
        "",
        f"{verdict.sentence}.",
        "",
        "| Answer | Guarantee | Measured | What was found |",
        "|---|---|---|---|",
        *(
            f"| {x.answer} | {markdown(x.claim.name)} | {markdown(x.claim.about)} "
            f"| {markdown(x.sentence)} |"
            for x in verdict.findings
        ),
    ]
    return "\n".join(lines) + "\n"


def junit(verdict: Verdict) -> str:
    """Return JUnit XML: a broken guarantee is a failure, an inconclusive one an error."""
    counts = {answer: sum(x.answer is answer for x in verdict.findings) for answer in Answer}
    suite = ElementTree.Element(
        "testsuite",
        name="veilbench gate",
        tests=str(len(verdict.findings)),
        failures=str(counts[Answer.BROKEN]),
        errors=str(counts[Answer.INCONCLUSIVE]),
    )
    for finding in verdict.findings:
        case = ElementTree.SubElement(
            suite, "testcase", classname="veilbench.gate", name=visible(finding.claim.name)
        )
        if finding.answer is Answer.HOLDS:
            ElementTree.SubElement(case, "system-out").text = finding.sentence
        else:
            tag = "failure" if finding.answer is Answer.BROKEN else "error"
            about = {"type": str(finding.answer), "message": finding.sentence}
            ElementTree.SubElement(case, tag, about)
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def github_annotations(verdict: Verdict) -> str:
    """Return GitHub's workflow commands for what does not hold."""
    return "\n".join(_annotation(x) for x in verdict.findings if x.answer is not Answer.HOLDS)


def _annotation(finding: Finding) -> str:
    level = "error" if finding.answer is Answer.BROKEN else "warning"
    title = _escaped(f"{finding.answer}: {visible(finding.claim.name)}", ":,")
    return f"::{level} title={title}::{_escaped(finding.sentence)}"


def _escaped(text: str, more: str = "") -> str:
    """Return text with what GitHub's commands reserve in the form %XX."""
    return text.translate({ord(c): f"%{ord(c):02X}" for c in f"%\r\n{more}"})
