"""A placeholder for the language model of detectors with text prompts (Grounding DINO).

The maps of their necks do not depend on words. Without the real one such a detector needs neither the transformers
package nor a download of BERT, and serves as a teacher of features; it cannot detect.
"""

from types import SimpleNamespace
from typing import NoReturn

from torch import nn

BERT_BASE_WIDTH = 768


class NoLanguageModel(nn.Module):
    """Has the width of BERT-base, which all such models of the zoo use, and no words."""

    def __init__(self) -> None:
        super().__init__()
        # Where mmdet looks for the width when it builds the layers that follow.
        self.language_backbone = SimpleNamespace(body=SimpleNamespace(language_dim=BERT_BASE_WIDTH))

    def forward(self, captions: object, **options: object) -> NoReturn:
        """Raises NotImplementedError: nothing here understands text."""
        raise NotImplementedError('this detector was built for its features, without its language model')
