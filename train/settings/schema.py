"""JSON schema of stage files, with which editors complete and check them."""

import json

from mtpd_train.settings.stage_settings import StageSettings

DIALECT = 'https://json-schema.org/draft/2020-12/schema'


def schema_text() -> str:
    """The schema as text: types, ranges and names. `mtpd-train` alone checks what depends on several settings."""
    schema = StageSettings.model_json_schema()
    return json.dumps({'$schema': DIALECT, **schema, 'title': 'Stage file of mtpd-train'}, indent=1) + '\n'
