"""The page on the API, written from its OpenAPI schema: plain HTML, which needs no script."""

from collections.abc import Mapping

from vlrep_jax.report.markup import esc


def docs_page(schema: Mapping) -> str:
    """An HTML page of what an OpenAPI schema says: paths, what they take, what they give."""
    about = schema["info"]
    parts = [
        f"<h1>{esc(about['title'])}</h1>",
        f'<p class="lead">{esc(about.get("summary", ""))} This is for people; machines read '
        '<a href="/openapi.json">openapi.json</a>. <a href="/">Back to the search</a>.</p>',
    ]
    for path, methods in schema["paths"].items():
        parts += [_operation(path, method, op, schema) for method, op in methods.items()]
    parts.append("<h2>What comes back</h2>")
    for name, model in schema["components"]["schemas"].items():
        if not name.startswith(("Body_", "HTTPValidation", "ValidationError")):
            rows = _fields(model.get("properties", {}), model.get("required", ()), schema)
            parts.append(f'<section id="{esc(name)}"><h3>{esc(name)}</h3>{rows}</section>')
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{esc(about["title"])}: API</title><link rel="stylesheet" href="/static/page.css">'
        f'<link rel="icon" href="data:,"></head>\n<body><main class="docs">\n'
        f"{chr(10).join(parts)}\n</main></body></html>\n"
    )


def _operation(path, method, operation, schema):
    takes = {
        p["name"]: p["schema"] | {"description": p.get("description", "")}
        for p in operation.get("parameters", ())
    }
    required = [p["name"] for p in operation.get("parameters", ()) if p.get("required")]
    for content in operation.get("requestBody", {}).get("content", {}).values():
        body = _resolved(content["schema"], schema)
        takes |= body["properties"]
        required += body.get("required", ())
    gives = [_answer(code, answer) for code, answer in operation["responses"].items()]
    return (
        f'<section><h2><span class="method">{esc(method.upper())}</span> '
        f"<code>{esc(path)}</code></h2><p>{esc(operation.get('description', ''))}</p>"
        f"{_fields(takes, required, schema)}<ul>{''.join(gives)}</ul></section>"
    )


def _answer(code, answer):
    kinds = []
    for kind, content in answer.get("content", {}).items():
        name = content.get("schema", {}).get("$ref", "").rpartition("/")[2]
        kinds.append(f'<a href="#{esc(name)}">{esc(name)}</a>' if name else esc(kind))
    what = "" if answer["description"] == "Successful Response" else answer["description"]
    text = " ".join(filter(None, [", ".join(kinds), esc(what)]))
    return f"<li><b>{esc(code)}</b> {text}</li>"


def _fields(properties, required, schema):
    if not properties:
        return ""
    rows = []
    for name, field in properties.items():
        notes = [field.get("description", "")]
        if name in required:
            notes.append("required")
        elif field.get("default") not in (None, ""):
            notes.append(f"{field['default']} if not given")
        rows.append(
            f"<tr><td><code>{esc(name)}</code></td><td>{esc(_type(field))}</td>"
            f"<td>{esc('; '.join(filter(None, notes)))}</td></tr>"
        )
    return f"<table>{''.join(rows)}</table>"


def _type(field):
    if "anyOf" in field:
        return " or ".join(_type(one) for one in field["anyOf"])
    if "$ref" in field:
        return field["$ref"].rpartition("/")[2]
    if field.get("type") == "array":
        return f"list of {_type(field['items'])}"
    if field.get("format") == "binary" or "contentMediaType" in field:
        return "file"
    low, high = field.get("minimum"), field.get("maximum")
    limits = "" if low is None or high is None else f", {low:g} to {high:g}"
    return field.get("type", "value") + limits


def _resolved(field, schema):
    name = field.get("$ref", "").rpartition("/")[2]
    return schema["components"]["schemas"][name] if name else field
