"""Nouns that name an object category: COCO's 80 categories, and the coloured shapes of our scenes.

The synonyms are our own. A word is left out where it names several categories ("glass", "van", "plant"), so that a
claim in such words is not checked at all.
"""

import dataclasses
import functools
from collections.abc import Mapping

from llava_jax.data.sources.scene_world import COLORS, SHAPES

# category: nouns for any object of it, its own name included
COCO = {
    "person": ("person", "human", "individual", "pedestrian", "passerby", "bystander", "spectator", "onlooker"),
    "bicycle": ("bicycle", "bike", "tricycle"),
    "car": ("car", "automobile", "sedan", "suv", "taxi", "cab", "hatchback", "minivan", "jeep", "convertible"),
    "motorcycle": ("motorcycle", "motorbike", "motor bike", "motor scooter", "dirt bike", "moped", "scooter"),
    "airplane": ("airplane", "plane", "aeroplane", "aircraft", "jet", "airliner", "jetliner", "biplane"),
    "bus": ("bus", "minibus", "double decker", "double-decker"),
    "train": ("train", "locomotive"),
    "truck": ("truck", "lorry", "pickup", "firetruck", "fire engine"),
    "boat": ("boat", "sailboat", "canoe", "kayak", "rowboat", "yacht", "speedboat", "motorboat", "gondola", "ship"),
    "traffic light": ("traffic light", "traffic signal", "stoplight", "stop light"),
    "fire hydrant": ("fire hydrant", "hydrant"),
    "stop sign": ("stop sign",),
    "parking meter": ("parking meter",),
    "bench": ("bench",),
    "bird": ("bird",),
    "cat": ("cat", "kitty"),
    "dog": ("dog", "canine"),
    "horse": ("horse",),
    "sheep": ("sheep",),
    "cow": ("cow", "cattle"),
    "elephant": ("elephant",),
    "bear": ("bear",),
    "zebra": ("zebra",),
    "giraffe": ("giraffe",),
    "backpack": ("backpack", "rucksack", "knapsack"),
    "umbrella": ("umbrella", "parasol"),
    "handbag": ("handbag", "hand bag", "purse"),
    "tie": ("tie", "necktie"),
    "suitcase": ("suitcase", "suit case", "luggage"),
    "frisbee": ("frisbee", "flying disc", "flying disk"),
    "skis": ("ski",),
    "snowboard": ("snowboard", "snow board"),
    "sports ball": ("sports ball", "ball", "soccer ball", "tennis ball", "basketball", "volleyball", "baseball"),
    "kite": ("kite",),
    "baseball bat": ("baseball bat", "bat"),
    "baseball glove": ("baseball glove", "baseball mitt", "mitt"),
    "skateboard": ("skateboard", "skate board"),
    "surfboard": ("surfboard", "surf board"),
    "tennis racket": ("tennis racket", "tennis racquet", "racket", "racquet"),
    "bottle": ("bottle",),
    "wine glass": ("wine glass", "wineglass", "glass of wine", "champagne glass", "wine goblet"),
    "cup": ("cup", "mug", "teacup", "glass cup"),
    "fork": ("fork",),
    "knife": ("knife",),
    "spoon": ("spoon",),
    "bowl": ("bowl",),
    "banana": ("banana",),
    "apple": ("apple",),
    "sandwich": ("sandwich", "burger", "hamburger", "cheeseburger"),
    "orange": ("orange",),
    "broccoli": ("broccoli",),
    "carrot": ("carrot",),
    "hot dog": ("hot dog", "hotdog", "chili dog", "chilli dog", "corn dog"),
    "pizza": ("pizza",),
    "donut": ("donut", "doughnut"),
    "cake": ("cake", "cupcake", "cheesecake"),
    "chair": ("chair", "armchair", "recliner"),
    "couch": ("couch", "sofa", "loveseat", "settee"),
    "potted plant": ("potted plant", "pot plant", "houseplant", "house plant", "potted flower", "potted tree"),
    "bed": ("bed",),
    "dining table": ("dining table", "dinner table", "table"),
    "toilet": ("toilet",),
    "tv": ("tv", "television", "tv set", "television set", "flat screen tv", "tv screen", "computer monitor"),
    "laptop": ("laptop", "laptop computer", "notebook computer", "macbook"),
    "mouse": ("mouse", "computer mouse"),
    "remote": ("remote", "remote control", "remote controller"),
    "keyboard": ("keyboard",),
    "cell phone": ("cell phone", "cellphone", "mobile phone", "smartphone", "smart phone", "iphone", "phone"),
    "microwave": ("microwave", "microwave oven"),
    "oven": ("oven", "stove"),
    "toaster": ("toaster",),
    "sink": ("sink", "washbasin"),
    "refrigerator": ("refrigerator", "fridge"),
    "book": ("book",),
    "clock": ("clock",),
    "vase": ("vase",),
    "scissors": ("scissor",),
    "teddy bear": ("teddy bear", "teddy", "toy bear", "stuffed bear", "plush bear", "stuffed teddy bear"),
    "hair drier": ("hair drier", "hair dryer", "hairdryer", "hairdrier", "blow dryer"),
    "toothbrush": ("toothbrush", "tooth brush"),
}
# category: nouns for some objects of it only ("two men" leaves it open how many persons there are)
COCO_NARROWER = {
    "person": (
        "man", "woman", "boy", "girl", "child", "kid", "baby", "toddler", "infant", "lady", "gentleman", "guy",
        "adult", "teenager", "player", "surfer", "skier", "snowboarder", "skateboarder", "skater", "rider", "cyclist",
        "biker", "bicyclist", "motorcyclist", "batter", "pitcher", "umpire", "chef", "waiter", "waitress", "policeman",
        "police officer", "officer", "soldier", "worker", "athlete", "bride", "groom", "businessman", "businesswoman",
        "fisherman", "firefighter", "jockey", "performer", "musician", "student", "swimmer", "runner", "hiker",
        "jogger", "shopper", "photographer", "couple",
    ),
    "bicycle": ("mountain bike", "tandem bicycle"),
    "car": ("police car", "sports car", "race car"),
    "airplane": ("passenger plane", "fighter jet", "passenger jet"),
    "bus": ("school bus", "city bus"),
    "train": ("subway train", "passenger train", "freight train", "steam engine"),
    "truck": ("fire truck", "pickup truck", "dump truck", "tow truck", "food truck", "delivery truck", "garbage truck"),
    "bird": (
        "duck", "duckling", "goose", "seagull", "gull", "pigeon", "dove", "parrot", "owl", "eagle", "hawk", "sparrow",
        "swan", "crow", "flamingo", "penguin", "peacock", "heron", "pelican", "parakeet", "rooster", "ostrich",
    ),
    "cat": ("kitten",),
    "dog": (
        "puppy", "husky", "poodle", "bulldog", "labrador", "retriever", "golden retriever", "terrier", "chihuahua",
        "dachshund", "corgi", "beagle", "pug", "dalmatian", "german shepherd", "husky dog",
    ),
    "horse": ("pony", "foal", "stallion", "mare"),
    "sheep": ("ewe",),
    "cow": ("bull", "ox", "heifer"),
    "bear": ("polar bear", "grizzly bear", "grizzly", "brown bear", "black bear", "panda", "panda bear"),
    "tie": ("bow tie", "bowtie"),
    "bottle": ("water bottle", "wine bottle", "beer bottle"),
    "cup": ("coffee cup", "coffee mug", "tea cup", "paper cup"),
    "knife": ("butter knife", "steak knife"),
    "cake": ("birthday cake", "wedding cake"),
    "chair": ("high chair", "rocking chair", "lawn chair", "beach chair", "office chair", "folding chair"),
    "dining table": ("kitchen table", "picnic table"),
    "bed": ("bunk bed",),
    "clock": ("alarm clock", "wall clock"),
    "handbag": ("tote bag",),
}  # fmt: skip
# Nouns that contain a category's name and are no object of it.
COCO_OTHER = (
    "dog bed", "cat bed", "pet bed", "flower bed", "truck bed", "river bed", "bed of flowers", "bed and breakfast",
    "toilet paper", "jet ski", "rubber duck", "rubber ducky", "rocking horse", "sea horse", "saw horse", "prairie dog",
    "gummy bear", "bear market", "bull market", "zebra crossing", "paper plane", "coffee table", "side table",
    "end table", "pool table", "bedside table", "night table", "ping pong table", "billiard table", "changing table",
    "table tennis", "table top", "table cloth", "table lamp", "chair lift", "couch potato", "apple pie", "apple juice",
    "orange juice", "apple tree", "carrot cake mix", "pan cake", "rice cake", "crab cake", "crab apple", "super bowl",
    "dust bowl", "world cup", "big apple", "cable car", "train car", "train set", "baby carriage", "baby stroller",
    "meat ball", "crystal ball", "disco ball", "ball of yarn", "ball gown", "catwalk", "copycat", "umbrella hat",
    "snow man", "bottle cap", "wine cooler", "boat house", "gravy boat", "bird's-eye", "worker bee", "record player",
    "dvd player", "cd player", "music player", "video player", "girl scout cookie", "baby oil", "kid glove",
    "gingerbread man", "dough nut hole", "bat mobile", "remote area", "aircraft carrier", "facial tissue",
)  # fmt: skip
IRREGULAR = {
    "person": ("people", "persons", "folks"), "man": ("men",), "woman": ("women",), "child": ("children",),
    "gentleman": ("gentlemen",), "policeman": ("policemen",), "fisherman": ("fishermen",), "goose": ("geese",),
    "businessman": ("businessmen",), "businesswoman": ("businesswomen",), "mouse": ("mice",), "knife": ("knives",),
    "sheep": ("sheep",), "cattle": ("cattle",), "ox": ("oxen",), "luggage": (), "broccoli": (),
    "aircraft": ("aircraft",), "passerby": ("passersby",), "glass of wine": ("glasses of wine",), "bed of flowers": (),
}  # fmt: skip
MASS = frozenset({"broccoli", "luggage", "cattle", "pizza", "cake"})  # singular without an article
# Words that are more often a verb, an adjective or an idea; they count as nouns only after an article or a number.
AMBIGUOUS = frozenset({
    "orange", "tie", "bear", "train", "book", "remote", "sink", "ski", "bat", "bowl", "ship", "baseball", "basketball",
    "volleyball", "phone", "individual", "human", "adult", "convertible", "teddy", "cab", "duck", "crow", "bull",
    "fork", "spoon", "cup", "bottle", "toast", "swallow", "groom", "pitcher", "couple", "racket", "mare", "parrot",
})  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Noun:
    """category: None where the noun only contains a category's name. narrower: names a part of the category."""

    category: str | None
    plural: bool
    narrower: bool = False
    mass: bool = False
    ambiguous: bool = False


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Nouns by their lower-case words, and the box categories that a category covers where it covers several."""

    nouns: Mapping[tuple[str, ...], Noun]
    covers: Mapping[str, frozenset[str]] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def longest(self) -> int:
        return max(len(tokens) for tokens in self.nouns)

    def covered(self, category: str) -> frozenset[str]:
        """Returns the categories of the boxes that are objects of `category`."""
        return self.covers.get(category, frozenset({category}))


def plurals(noun: str) -> tuple[str, ...]:
    """Returns the plural forms of a noun, of its last word where it has several.

    >>> plurals("wine glass"), plurals("puppy"), plurals("knife")
    (('wine glasses',), ('puppies',), ('knives',))
    """
    if noun in IRREGULAR:
        return IRREGULAR[noun]
    *before, last = noun.split(" ")
    if last in IRREGULAR:
        forms = IRREGULAR[last]
    elif last.endswith(("s", "x", "ch", "sh")):
        forms = (last + "es",)
    elif last.endswith("y") and last[-2] not in "aeiou":
        forms = (last[:-1] + "ies",)
    else:
        forms = (last + "s",)
    return tuple(" ".join([*before, form]) for form in forms)


@functools.cache
def coco_vocabulary() -> Vocabulary:
    """Returns the nouns of COCO's 80 categories. A "table" is a dining table, the only table that COCO has."""
    nouns: dict[tuple[str, ...], Noun] = {}
    for category, narrower, names in [
        *((category, False, names) for category, names in COCO.items()),
        *((category, True, names) for category, names in COCO_NARROWER.items()),
        *((None, False, (name,)) for name in COCO_OTHER),
    ]:
        for name in names:
            noun = Noun(category, False, narrower, name in MASS, name in AMBIGUOUS)
            nouns[tuple(name.split())] = noun
            for plural in plurals(name):
                nouns[tuple(plural.split())] = dataclasses.replace(noun, plural=True)
    return Vocabulary(nouns)


@functools.cache
def scene_vocabulary() -> Vocabulary:
    """Returns the nouns of our scenes: "red circle" for boxes of that name, and "circle" for circles of any colour."""
    nouns = {}
    for shape in SHAPES:
        for category in (shape, *(f"{color} {shape}" for color in COLORS)):
            nouns[tuple(category.split())] = Noun(category, plural=False)
            nouns[tuple(plurals(category)[0].split())] = Noun(category, plural=True)
    return Vocabulary(nouns, {shape: frozenset(f"{color} {shape}" for color in COLORS) for shape in SHAPES})
