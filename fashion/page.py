PAGE = """<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff;
       max-width: 1200px; margin: 2em auto; padding: 0 1em; }}
h1 {{ font-size: 1.6em; margin-bottom: 0; }}
h2 {{ font-size: 1.2em; margin: 2em 0 .5em; }}
table {{ border-collapse: collapse; }}
th, td {{ padding: .25em 1em .25em 0; text-align: left; vertical-align: top;
         border-bottom: 1px solid #ddd; overflow-wrap: anywhere; }}
img {{ max-width: 100%; }}
</style>
<h1>{title}</h1>
<p>{headline}</p>
{sections}
</html>
"""


def render_html(
    record: dict[str, dict], comparison: list[list[str]], sentence: str, pictures: Path
) -> str:
    """One self-contained page for a colleague; `pictures` is the folder that has `PICTURES`."""

    def table(rows: list[list[object]], header: bool = True) -> str:
        lines = []
        for i, row in enumerate(rows):
            tag = "th" if header and i == 0 else "td"
            cells = "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in row)
            lines.append(f"<tr>{cells}</tr>")
        return "<table>\n" + "\n".join(lines) + "\n</table>"

    def picture(name: str) -> str:
        content = base64.b64encode((pictures / name).read_bytes()).decode()
        return f'<img src="data:image/png;base64,{content}" alt="{name}">'

    def settings(part: str) -> str:
        rows = [
            [name, ", ".join(map(str, value)) if isinstance(value, list | tuple) else value]
            for name, value in record[part].items()
        ]
        return table(rows, header=False)

    test, count = record["test"], record["data"]["test"]
    low, high = test["interval95"]
    results = [["", "accuracy", "95 % interval", "loss", "calibration error", "images"]]
    for name in "train", "validation", "test":
        part = record[name]
        interval = "{:.1%} to {:.1%}".format(*part["interval95"])
        error = f"{part['expected_calibration_error']:.3f}"
        images = f"{record['data'][name]:,}"
        results.append(
            [name, f"{part['accuracy']:.2%}", interval, f"{part['loss']:.3f}", error, images]
        )
    per_class = [["class", "precision", "recall", "F1", "images", "most often taken for"]]
    for row in test["per_class"]:
        shares = (f"{row[name]:.1%}" for name in ("precision", "recall", "f1"))
        other = f"{row['confused_with']} ({row['confused']})" if row["confused"] else "–"
        per_class.append([row["class"], *shares, row["support"], other])
    sections = {
        "Results": table(results),
        "Beside another model's last run": f"{table(comparison)}<p>{html.escape(sentence)}</p>",
        "By class, on the test images": table(per_class),
        "What is confused with what": picture("confusion_matrix.png"),
        "Most confident mistakes: the model's, or the label's": picture("mistakes.png"),
        "How far the confidence can be trusted": picture("reliability.png"),
        "Training": picture("curves.png"),
        "Options": settings("config"),
        "Data": settings("data"),
        "Weights": settings("weights"),
        "Parameters": settings("parameters"),
        "Time, in seconds": settings("seconds"),
        "Memory": settings("memory"),
        "Computed with": settings("versions"),
    }
    return PAGE.format(
        title=f"{record['model']} on Fashion-MNIST",
        headline=f"<b>{test['accuracy']:.1%}</b> of {count:,} test images right (95 % interval "
        f"{low:.1%} to {high:.1%}), with the weights of epoch {record['best_epoch']}.",
        sections="\n".join(f"<h2>{title}</h2>\n{body}" for title, body in sections.items()),
    )
