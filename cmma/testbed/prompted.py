"""Whether an image shows what its prompt says: the prompt's mentions against the parsed image."""

from __future__ import annotations

from cmma.testbed.captions import Mention, parse_caption, parse_relations
from cmma.testbed.language import RELATIONS
from cmma.testbed.parser import ParsedObject, ParsedScene

COUNTED = ("object", "size", "texture", "count", "image", "relation", "relation_given_objects")


def prompt_counts(prompt: str, scene: ParsedScene) -> dict[str, tuple[int, int]]:
    """(right, asked for) per kind of claim of one prompt.

    Returns:
        object: mentions (colour and shape, as far as stated) whose object is in the image. size, texture: attributes
        that are stated and right, an absent object being wrong. count: as many objects as mentioned. image: all of it
        right, and nothing else there. relation: statements whose two objects are there and stand so;
        relation_given_objects: of the statements whose two objects are there.
    """
    relations = parse_relations(prompt)
    mentions = parse_caption(prompt)
    mentions = mentions[: len(mentions) - 2 * len(relations)]  # those of the statements name the same objects again
    there = [_find(mention, scene) for mention in mentions]
    ends = [(_find(r.subject, scene), r.relation, _find(r.other, scene)) for r in relations]
    both = [(a, name, b) for a, name, b in ends if a is not None and b is not None]
    holding = sum(RELATIONS[name](a, b) for a, name, b in both)
    counts = {"object": (sum(found is not None for found in there), len(mentions))}
    for name in ("size", "texture"):
        said = [(getattr(m, name), found) for m, found in zip(mentions, there, strict=True) if getattr(m, name)]
        counts[name] = (sum(getattr(found, name, None) == word for word, found in said), len(said))
    whole = sum(found is not None and _agrees(m, found) for m, found in zip(mentions, there, strict=True))
    return counts | {
        "count": (int(len(scene.objects) == len(mentions)), 1),
        "image": (int(whole == len(mentions) == len(scene.objects)), 1),
        "relation": (holding, len(relations)),
        "relation_given_objects": (holding, len(both)),
    }


def _find(mention: Mention, scene: ParsedScene) -> ParsedObject | None:
    """The parsed object that agrees best with a mention, of those with its shape and (where said) its colour."""
    named = [o for o in scene.objects if o.shape == mention.shape and mention.color in (None, o.color)]
    return max(named, key=lambda o: sum(getattr(o, k) == v for k, v in mention.stated.items()), default=None)


def _agrees(mention: Mention, found: ParsedObject) -> bool:
    return all(getattr(found, name) == word for name, word in mention.stated.items())
