"""Where the files of a detector are: in a local folder, or in a repository of the Hugging Face hub."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mtpd.detectors.of_hf.library import transformers_of
from mtpd.errors import InputError, UnavailableError

PREFIX = 'hf:'
CONFIG_FILE, WEIGHTS_FILE, PREPROCESSOR_FILE, CARD_FILE = (
    'config.json', 'model.safetensors', 'preprocessor_config.json', 'README.md',
)  # fmt: skip
GIVE_FOLDER = 'give a local folder, hf:FOLDER'

_REPOSITORY = re.compile(r'[\w.-]+(/[\w.-]+)?')
_FRONT_MATTER = re.compile(r'\A---\s*\n(.*?)\n---\s*$', re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Place:
    """A local folder or a repository, as `hf:REPO_OR_FOLDER` names it."""

    reference: str

    @property
    def location(self) -> str:
        """The reference without its prefix."""
        return self.reference.removeprefix(PREFIX)

    @property
    def is_local(self) -> bool:
        """Whether it is a folder, which comes before a repository of the same name."""
        return Path(self.location).is_dir()

    @property
    def absolute(self) -> str:
        """The reference, which means the same from every working directory."""
        return f'{PREFIX}{Path(self.location).resolve()}' if self.is_local else self.reference

    def file(self, name: str, *, offline: str = GIVE_FOLDER) -> Path | None:
        """A file of it, downloaded once; None where it has none. UnavailableError offline, which advises `offline`."""
        if self.is_local:
            path = Path(self.location) / name
            return path if path.is_file() else None
        if not _REPOSITORY.fullmatch(self.location):
            raise InputError(
                f'{self.reference}: there is no folder {self.location}, and it is no name of a repository such as '
                'PekingU/rtdetr_v2_r18vd; give one of them'
            )
        transformers_of(self.reference)
        import huggingface_hub as hub
        from huggingface_hub import errors

        try:
            cached = hub.try_to_load_from_cache(self.location, name)
            if cached is not None:  # A path, or a marker that the repository has no such file.
                return Path(cached) if isinstance(cached, str) else None
            return Path(hub.hf_hub_download(self.location, name))
        except errors.LocalEntryNotFoundError as error:  # It is an EntryNotFoundError too, of another meaning.
            raise self._unavailable(name, error, offline) from error
        except errors.EntryNotFoundError:
            return None
        except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
            raise InputError(
                f'{self.reference}: there is no folder {self.location}, and no repository of that name that can be '
                f'read; check the name, or {offline}'
            ) from error
        # The hub's client has errors of many kinds.
        except Exception as error:
            raise self._unavailable(name, error, offline) from error

    def require(self, name: str, *, offline: str = GIVE_FOLDER) -> Path:
        """A file that it must have."""
        found = self.file(name, offline=offline)
        if found is None:
            raise InputError(f'{self.reference}: has no {name}; {offline}, or another repository')
        return found

    def values(self, name: str) -> dict[str, Any] | None:
        """The content of a JSON file of it; None where it has none."""
        path = self.file(name)
        if path is None:
            return None
        try:
            found = json.loads(path.read_bytes())
        except ValueError as error:
            raise InputError(f'{path}: is no JSON ({error}); fetch or copy it again') from error
        if not isinstance(found, dict):
            raise InputError(f'{path}: holds a {type(found).__name__}, expected an object; fetch or copy it again')
        return found

    def license(self) -> str | None:
        """What its model card states; None where that is not known."""
        try:
            path = self.file(CARD_FILE)
        except UnavailableError:
            return None
        matter = _FRONT_MATTER.match(path.read_text(errors='replace')) if path else None
        try:
            values = yaml.safe_load(matter[1]) if matter else None
        except yaml.YAMLError:
            return None
        found = values.get('license') if isinstance(values, dict) else None
        return found if isinstance(found, str) else None

    def _unavailable(self, name: str, error: Exception, offline: str) -> UnavailableError:
        return UnavailableError(
            f'{self.reference}: there is no folder {self.location}, and its {name} cannot be downloaded '
            f'({type(error).__name__}); {offline}'
        )
