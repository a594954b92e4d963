"""The types of a Grafana dashboard, by the models that Grafana publishes.

The models of grafana-foundation-sdk are made from Grafana's own schemas. Their
from_json() takes any value for any field, so it alone proves nothing. Here

1. the file is decoded by Dashboard.from_json, with options, field configuration
   and queries by the models of their plugins;
2. every attribute is held against its annotation, down to the leaves;
3. it is encoded again, and every key and value of the file must be in that: what
   the models do not know is lost on the way. Untouched dictionaries that the
   annotations say have a model go through 1 to 3 themselves, as do overrides.

broken() gives copies of a dashboard with one thing wrong in each.
"""

from __future__ import annotations

import copy
import enum
import itertools
import json
import typing
from typing import Any

from grafana_foundation_sdk.cog import plugins, runtime
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import prometheus

plugins.register_default_plugins()

# What the schemas leave open ("any"), and we use: by what it is in the document.
OPEN: dict[str, dict[str, Any]] = {
    "merge": {},
    "organize": {
        "excludeByName": dict[str, bool],
        "indexByName": dict[str, int],
        "renameByName": dict[str, str],
    },
    "query": {"query": str, "refId": str},
}


def problems(raw: dict[str, Any]) -> list[str]:
    """What is wrong with a dashboard; nothing, if it is well."""
    found = list(_decoded(raw, models.Dashboard, ""))
    if not found:  # so the shape is right
        for index, panel in enumerate(raw.get("panels") or []):
            kind = _row if panel.get("type") == "row" else _panel
            found += kind(panel, f"panels[{index}]")
        for index, variable in enumerate(raw["templating"]["list"]):
            if variable["type"] == "query":
                at = f"templating.list[{index}].query"
                found += _open(variable["query"], "query", at)
    return found


def _open(value: Any, kind: str, path: str) -> typing.Iterator[str]:
    """Something of OPEN."""
    if kind not in OPEN or not isinstance(value, dict):
        yield f"{path}: {value!r} is no {kind} that we know"
        return
    for key, one in value.items():
        if key in OPEN[kind]:
            yield from _conforms(one, OPEN[kind][key], f"{path}.{key}")
        else:
            yield f"{path}.{key}: unknown for {kind}"


def _row(row: dict[str, Any], path: str) -> typing.Iterator[str]:
    """A heading: the panels below it are beside it in the file, and not in it."""
    yield from _decoded(row, models.RowPanel, path)
    for key in ("id", "title", "gridPos"):
        if key not in row:
            yield f"{path}: no {key}"
    if row.get("panels") != []:
        yield f"{path}.panels: not empty"


def _panel(panel: dict[str, Any], path: str) -> typing.Iterator[str]:  # noqa: C901
    """What the models of a panel leave open."""
    config = runtime.panelcfg_config(str(panel.get("type")))
    if config is None:
        yield f"{path}.type: no model of {panel.get('type')!r}"
        return
    for key in ("id", "title", "description", "gridPos", "datasource", "targets", "options"):
        if key not in panel:
            yield f"{path}: no {key}"
    source = panel.get("datasource")
    if source != {"type": "prometheus", "uid": "${datasource}"}:
        yield f"{path}.datasource: not the variable but {source!r}"
    for index, target in enumerate(panel.get("targets") or []):
        at = f"{path}.targets[{index}]"
        yield from _decoded(target, prometheus.Dataquery, at)
        if target.get("datasource") != source:  # typed as any object
            yield f"{at}.datasource: not that of the panel"
        if not target.get("expr") or not target.get("refId"):
            yield f"{at}: neither expr nor refId may be missing"
    for index, one in enumerate(panel.get("transformations") or []):
        yield from _open(one["options"], one["id"], f"{path}.transformations[{index}].options")
    field_config = panel.get("fieldConfig") or {}
    custom = (field_config.get("defaults") or {}).get("custom")
    if custom and config.field_config_from_json_hook is None:
        yield f"{path}.fieldConfig.defaults.custom: {panel['type']} has none"
    for index, override in enumerate(field_config.get("overrides") or []):
        at = f"{path}.fieldConfig.overrides[{index}].matcher.options"
        yield from _conforms(override["matcher"]["options"], str, at)
        for number, prop in enumerate(override.get("properties") or []):
            at = f"{path}.fieldConfig.overrides[{index}].properties[{number}]"
            yield from _property(prop, config, at)


def _property(prop: dict[str, Any], config: Any, path: str) -> typing.Iterator[str]:
    """A property of an override is a field of the defaults, or of their custom part."""
    name = prop.get("id")
    if not name or "value" not in prop:
        yield f"{path}: neither id nor value may be missing"
    elif not name.startswith("custom."):
        yield from _decoded({name: prop["value"]}, models.FieldConfig, path)
    elif config.field_config_from_json_hook is None:
        yield f"{path}: {name} is of no panel of this type"
    else:
        raw = {name.removeprefix("custom."): prop["value"]}
        cls = config.field_config_from_json_hook.__self__
        yield from _decoded(raw, cls, path)


def _decoded(raw: Any, cls: Any, path: str) -> typing.Iterator[str]:
    try:
        value = cls.from_json(raw)
    except Exception as error:  # noqa: BLE001
        yield f"{path or '.'}: {cls.__name__}.from_json: {error!r}"
        return
    yield from _attributes(value, path)
    try:
        again = json.loads(json.dumps(value, cls=JSONEncoder))
    except Exception as error:  # noqa: BLE001
        yield f"{path or '.'}: {cls.__name__} cannot be encoded: {error!r}"
        return
    yield from _lost(raw, again, path)


def _attributes(value: Any, path: str) -> typing.Iterator[str]:
    for name, kind in typing.get_type_hints(type(value)).items():
        yield from _conforms(getattr(value, name), kind, f"{path}.{name}")


def _conforms(value: Any, kind: Any, path: str) -> typing.Iterator[str]:  # noqa: C901, PLR0912
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Union:
        tried = [list(_conforms(value, one, path)) for one in args]
        if all(tried):
            yield min(tried, key=lambda found: (found[0].count("."), len(found)))[0]
    elif origin is typing.Literal:
        if not any(value is one or (value == one and type(value) is type(one)) for one in args):
            yield f"{path}: {value!r} is none of {args}"
    elif origin is list:
        if isinstance(value, list):
            for index, one in enumerate(value):
                yield from _conforms(one, args[0], f"{path}[{index}]")
        else:
            yield f"{path}: {value!r} is not a list"
    elif origin is dict:
        if isinstance(value, dict):
            for key, one in value.items():
                yield from _conforms(key, args[0], f"{path}[{key!r}]")
                yield from _conforms(one, args[1], f"{path}[{key!r}]")
        else:
            yield f"{path}: {value!r} is not an object"
    elif kind in (Any, object):
        if hasattr(value, "to_json"):  # a plugin's: it has a model after all
            yield from _attributes(value, path)
    elif kind is type(None):
        if value is not None:
            yield f"{path}: {value!r} is not null"
    elif kind in (int, float):
        # JSON has one kind of number, and true is none.
        if isinstance(value, bool) or not isinstance(value, (int, kind)):
            yield f"{path}: {value!r} is not {kind.__name__}"
    elif kind in (str, bool):
        if not isinstance(value, kind):
            yield f"{path}: {value!r} is not {kind.__name__}"
    elif isinstance(kind, type) and issubclass(kind, enum.Enum):
        plain = value.value if isinstance(value, enum.Enum) else value
        if isinstance(plain, bool) or plain not in [one.value for one in kind]:
            yield f"{path}: {value!r} is no {kind.__name__}"
    elif isinstance(value, dict) and hasattr(kind, "from_json"):
        yield from _decoded(value, kind, path)  # the decoder left it as it was
    elif isinstance(value, kind):
        yield from _attributes(value, path)
    else:
        yield f"{path}: {value!r} is no {getattr(kind, '__name__', kind)}"


def _lost(raw: Any, again: Any, path: str) -> typing.Iterator[str]:
    if isinstance(raw, dict) and isinstance(again, dict):
        for key, one in raw.items():
            if key in again:
                yield from _lost(one, again[key], f"{path}.{key}")
            elif key == "definition" and ".templating.list[" in path:
                # Grafana writes it into every query variable; older models forgot it.
                if not isinstance(one, str):
                    yield f"{path}.{key}: {one!r} is not str"
            elif one is not None:
                yield f"{path}.{key}: unknown to the model"
    elif isinstance(raw, list) and isinstance(again, list) and len(raw) == len(again):
        for index, (one, other) in enumerate(zip(raw, again, strict=True)):
            yield from _lost(one, other, f"{path}[{index}]")
    elif raw != again or isinstance(raw, bool) != isinstance(again, bool):
        yield f"{path}: {raw!r} became {again!r}"


def _breaks(
    raw: Any, path: tuple[Any, ...] = ()
) -> typing.Iterator[tuple[str, tuple[Any, ...], Any]]:
    """Ways to break a document: (what, where, the wrong value)."""
    if isinstance(raw, dict):
        yield "unknown key", (*path, "nosuchkey"), 1
        for key, one in raw.items():
            yield from _breaks(one, (*path, key))
    elif isinstance(raw, list):
        yield "object for list", path, {"wrong": 1}
        for index, one in enumerate(raw):
            yield from _breaks(one, (*path, index))
    elif isinstance(raw, bool):
        yield "string for bool", path, "yes"
    elif isinstance(raw, (int, float)):
        yield "string for number", path, str(raw)
        yield "bool for number", path, True
    elif isinstance(raw, str):
        yield "number for string", path, 1
        yield "list for string", path, [raw]
    else:
        yield "object for null", path, {"wrong": 1}


def broken(raw: dict[str, Any], every: int) -> typing.Iterator[tuple[str, dict[str, Any]]]:
    """Yield what is broken, and a dashboard in which it is, of every nth possible fault."""
    for what, path, wrong in itertools.islice(_breaks(raw), 0, None, every):
        one = copy.deepcopy(raw)
        place: Any = one
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = wrong
        yield f"{what}: {'.'.join(map(str, path))}", one
