"""Offline text encoders: WordLlama's tokens and vectors as its own runtime gives them; hashed words that know no meaning."""

from __future__ import annotations

import pytest
import torch

from kineflow.contracts import KineflowError
from kineflow.policies.encoders.static_words import WHEEL, HashedWords, StaticWords, StaticWordsEncoder
from tests.policies.encoders.conftest import fetched

# From the `tokenizers` library on the wheel's own file, and the first values of wordllama 0.4.0.post1's `embed(..., norm=True)`.
TOKENS = {
    "go to the red chair": [748, 304, 278, 2654, 11774],
    "Drive  through the 2nd door, then stop!": [22850, 29871, 1549, 278, 29871, 29906, 299, 3050, 29892, 769, 5040, 29991],
    "Geh zum grünen Stuhl": [1879, 29882, 3356, 867, 3346, 264, 20061, 4415],
    "椅子へ行け 🪑": [29871, 233, 167, 136, 30319, 31388, 30448, 30807, 29871, 243, 162, 173, 148],
    "": [],
    " leading space": [29871, 8236, 2913],
    "follow the corridor\nand turn left": [1101, 278, 1034, 2429, 272, 13, 392, 2507, 2175],
}
VECTORS = {
    "go to the red chair": [-0.01252855, -0.09222292, -0.10515986, -0.05006667, 0.08762436, -0.03607799],
    "Drive  through the 2nd door, then stop!": [0.11673624, -0.03383935, -0.06238998, 0.05374616, 0.0128987, -0.01576913],
    "椅子へ行け 🪑": [-0.08968376, 0.1843044, 0.01373354, -0.04362225, 0.06934422, -0.01021171],
}


@pytest.fixture(scope="module")
def words() -> StaticWordsEncoder:
    fetched(WHEEL)
    return StaticWords().build()


def test_tokens_are_those_of_the_tokenizers_library(words: StaticWordsEncoder) -> None:
    assert {text: words._tokenizer(text) for text in TOKENS} == TOKENS


def test_vectors_are_those_of_wordllama(words: StaticWordsEncoder) -> None:
    torch.testing.assert_close(words(list(VECTORS))[:, :6], torch.tensor(list(VECTORS.values())), atol=1e-6, rtol=1e-5)
    assert words(["", "go"]).norm(dim=1).tolist() == pytest.approx([0, 1])
    assert words([]).shape == (0, 256)


def test_texts_of_one_meaning_are_closer(words: StaticWordsEncoder) -> None:
    asked = words(["stop at the door", "go to the red chair", "follow the corridor"])
    known = words(["halt by the doorway", "walk to the crimson seat", "drive along the hallway"])
    assert (asked @ known.T).argmax(1).tolist() == [0, 1, 2]


def test_hashed_words_tell_texts_apart_and_know_no_meaning() -> None:
    encoder = HashedWords(256).build()
    texts = ["go to the red chair", "go to the blue chair", "GO to the red  chair!", "chair the red to go"]
    vectors = encoder(texts)
    alike = vectors @ vectors.T
    assert alike[0, 2] == pytest.approx(1)
    assert 0.3 < alike[0, 1] < 0.9
    assert 0.3 < alike[0, 3] < 0.9  # the order of words counts
    sofa, couch, tree = encoder(["sofa", "couch", "tree"])
    assert (sofa @ couch - sofa @ tree).abs() < 0.3
    assert torch.equal(vectors, HashedWords(256).build()(texts))  # not a matter of the process
    assert encoder.fingerprint() != HashedWords(128).build().fingerprint()
    with pytest.raises(KineflowError, match="dim 4 is too small"):
        HashedWords(4).build()
