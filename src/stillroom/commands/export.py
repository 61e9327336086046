"""`stillroom export RUN`: the student as one checked file for other programs."""

from __future__ import annotations

from stillroom.commands.parser import Parser, named_as_typed


def run(arguments: list[str], command: str) -> None:
    """Writes the file and prints what it is and how far its answers are from the student's.

    Args:
        arguments: what follows `stillroom export`.
        command: the whole line that was typed.
    """
    parser = Parser(
        "stillroom export",
        "Writes a run's student as one file with class names and preprocessing inside, runs the file, compares it with the student, and "
        "keeps it only if they agree.",
    )
    parser.add_argument("run", metavar="RUN", help="the folder that `stillroom run` wrote")
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
        "--trust-pickle",
        action="store_true",
        help="run the code that RUN's student.json names, and read weights that are pickles",
    )
    given = parser.parse_args(arguments)

    from stillroom.tasks.students import export_student

    with named_as_typed("format", "out", "tolerance"):
        done = export_student(given.run, format=given.format, out=given.out, tolerance=given.tolerance, trust_pickle=given.trust_pickle)
    print(f"{done.path}: {_size(done.bytes)}")
    sizes = [f"{shape[0]}{' of another size' if shape[1:] != done.batches[0][1:] else ''}" for shape in done.batches]
    checked = f"batches of {', '.join(sizes[:-1])} and {sizes[-1]}"
    for output in done.outputs:
        print(
            f"largest difference from the student's {output.name}: {output.difference:.2g} "
            f"({checked}; {output.name} up to {output.largest:.3g}; tolerance {given.tolerance * output.unit:g})"
        )
    if done.note:
        print(done.note)


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"
