"""What mkdocs asks of us: notebooks as pages, and the address of the repository, which stands in mkdocs.yml alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PLACEHOLDER = "REPOSITORY"


def on_files(files: Any, config: Any) -> Any:
    """A notebook is a page, as its cells and their outputs; the file itself stays beside it."""
    from mkdocs.structure.files import File

    for notebook in [file for file in files if file.src_uri.endswith(".ipynb")]:
        text = as_markdown(Path(notebook.abs_src_path), Path(notebook.src_uri).name)
        files.append(File.generated(config, f"{notebook.src_uri.removesuffix('.ipynb')}.md", content=text))
    return files


def as_markdown(path: Path, name: str) -> str:
    parts = [f"*This page is a notebook: [{name}]({name}).*"]
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        parts += [shown for output in cell["outputs"] if (shown := as_output(output))]
    title = next(i for i, part in enumerate(parts) if part.startswith("# "))
    return "\n\n".join([parts.pop(title), *parts]) + "\n"


def as_output(output: dict[str, Any]) -> str:
    data = output.get("data", {})
    if "image/png" in data:
        return f'<img alt="" src="data:image/png;base64,{"".join(data["image/png"]).strip()}">'
    text = "".join(output.get("text", data.get("text/plain", ""))).rstrip()
    return f"```text\n{text}\n```" if text else ""


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    address = config["extra"]["repository"]
    return markdown.replace(PLACEHOLDER, address) if address else markdown
