"""Claims and verdicts on 2,000 scenes described by a scripted teacher, in phrasings known and unknown to the checker.

`unread_phrasings.py` was written by somebody who had not read the checker, and not read by who wrote the checker.
`pytest tests/datagen/test_scripted_scenes.py -s -n 0` prints the shares of each kind.
"""

import random
from collections import defaultdict

import pytest

from llava_jax.datagen.categories import scene_vocabulary
from llava_jax.datagen.claims import KINDS, claims_in
from llava_jax.datagen.truth import Share, verdict
from tests.datagen import phrasings, unread_phrasings
from tests.datagen.scripted_scenes import implied, relation_templates, scripted_context, sentence

SCENES = 2000
PRECISION, RECALL = 98.0, 95.0


@pytest.mark.parametrize("phrasings", [phrasings, unread_phrasings], ids=["read", "unread"])
def test_claims_and_planted_faults_of_a_scripted_teacher(phrasings):
    precision, recall, faults, truths = (defaultdict(Share) for _ in range(4))
    name = phrasings.__name__.rsplit(".", 1)[1]
    vocabulary, rng = scene_vocabulary(), random.Random(name)
    for i in range(SCENES):
        context = scripted_context(i)
        for text, planted in filter(None, (sentence(phrasings, kind, context, rng) for kind in KINDS)):
            claims = [claim for claim in claims_in("", text, vocabulary) if claim.certain]
            got, expected = {claim.meaning for claim in claims}, implied({planted.meaning})
            precision[planted.kind] += Share(len(got & expected), len(got))
            recall[planted.kind] += Share(len(got & expected), len(expected))
            verdicts = [
                verdict(claim, context.boxes, vocabulary) for claim in claims if claim.meaning == planted.meaning
            ]
            shares = truths if planted.true else faults
            shares[planted.kind] += Share(int(verdicts == [planted.true]), 1)
    print(f"\n{name}: % of claims that are right, of claims that are read, of true and of false claims judged rightly")
    for kind in KINDS:
        row = [shares[kind] for shares in (precision, recall, truths, faults)]
        print(f"{kind:10}" + "".join(f"{share.percent:8.2f} of {share.count:5}" for share in row))
    for kind in KINDS:
        assert precision[kind].percent >= PRECISION and recall[kind].percent >= RECALL, kind
        assert truths[kind].percent >= RECALL and faults[kind].percent >= RECALL, kind
        assert truths[kind].count > 400 and faults[kind].count > 400, kind


def test_phrasings_are_at_least_30_a_kind():
    numbers = {kind: len(set(templates)) for kind, templates in phrasings.PHRASINGS.items()}
    numbers["relation"] = len(
        {t for direction in phrasings.RELATIONS for t in relation_templates(phrasings, direction)}
    )
    assert set(numbers) == set(KINDS) and min(numbers.values()) >= 30
