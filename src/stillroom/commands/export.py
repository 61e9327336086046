"""`stillroom export RUN`: the student as one checked file for other programs."""

from __future__ import annotations

from argparse import Namespace

from stillroom.commands.parser import STUDENT, named_as_typed, size_text, student_parser
from stillroom.errors import InputError


def run(arguments: list[str], command: str) -> None:
    """Writes the file and prints what it is and how far its answers are from the student's.

    Args:
        arguments: what follows `stillroom export`.
        command: the whole line that was typed.
    """
    parser = student_parser(
        "stillroom export",
        "Writes a run's student as one file with class names and preprocessing inside, runs the file, compares it with the student, and "
        "keeps it only if they agree.",
    )
    parser.add_argument(
        "--format",
        default="onnx",
        help="onnx; torch: a program of torch.export (.pt2); or safetensors: weights with a description (default: onnx)",
    )
    parser.add_argument("--out", metavar="FILE", help="the file to write, or a folder for it (default: in RUN)")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=1e-4,
        help="largest allowed absolute difference of a logit from the student's; of a detector's scores, and of its boxes in parts of the "
        "image's longer side (default: 1e-4)",
    )
    parser.add_argument(
        "--quantize", help="int8: an ONNX file of 8-bit weights and activations, scored beside the student on the run's validation set"
    )
    parser.add_argument("--calibration", type=int, default=256, metavar="N", help="training samples that int8 is fitted on (default: 256)")
    parser.add_argument("--data", help="where the run's data lie now, for int8 (default: where they lay)")
    given = parser.parse_args(arguments)
    if given.quantize is not None:
        _quantize(given)
        return
    if given.data is not None:
        raise InputError("--data", given.data, "--quantize int8 beside it: nothing else reads the data")

    from stillroom.tasks.students import export_files

    with named_as_typed("format", "out", "tolerance", *STUDENT):
        files = export_files(**{name: getattr(given, name) for name in ("run", "format", "out", "tolerance", *STUDENT)})
    for done in files:
        print(f"{done.path}: {size_text(done.bytes)}")
        sizes = [f"{shape[0]}{' of another size' if shape[1:] != done.batches[0][1:] else ''}" for shape in done.batches]
        checked = f"batches of {', '.join(sizes[:-1])} and {sizes[-1]}"
        for output in done.outputs:
            print(
                f"largest difference from the student's {output.name}: {output.difference:.2g} "
                f"({checked}; {output.name} up to {output.largest:.3g}; tolerance {given.tolerance * output.unit:g})"
            )
        if done.note:
            print(done.note)


def _quantize(given: Namespace) -> None:
    """Writes the 8-bit file, says what it costs, and notes that in the run's report."""
    if given.quantize != "int8":
        raise InputError("--quantize", given.quantize, "int8")
    if given.format != "onnx":
        raise InputError("--format", given.format, "onnx, the format of 8-bit files")

    from stillroom.engine.report.files import add_remark
    from stillroom.tasks.quantized import quantize_student

    with named_as_typed("quantize", "calibration", "out", "data", *STUDENT):
        options = {name: getattr(given, name) for name in ("run", "calibration", "out", "data", *STUDENT)}
        done = quantize_student(**options)
    print(f"{done.path}: {size_text(done.bytes)}, {size_text(done.float_bytes)} in float32")
    print(done.said)
    add_remark(given.run, f"{done.path.name} (int8): {done.said}.")
