"""Writes the items of enigma_knowledge, enigma_reasoning and enigma_truthfulness: python scripts/items.py

All sentences are this project's own. The facts below are easy on purpose: an instrument that a model of 135M parameters
cannot read measures nothing. The wrong options of an item are right options of its neighbours, so that every option is
as likely a text as any other; none is chosen by looking at a model.
"""

import json
import random
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "enigma" / "tasks"
SEED = 20261124
CHOICES = 4

KNOWLEDGE = {
    "What is the opposite of {}?": "hot:cold|day:night|up:down|big:small|old:young|happy:sad|fast:slow|full:empty|light:dark|wet:dry|hard:soft|open:closed|rich:poor|loud:quiet|first:last|strong:weak|early:late|clean:dirty|right:wrong|long:short",
    "What is a young {} called?": "dog:a puppy|cat:a kitten|cow:a calf|horse:a foal|sheep:a lamb|bear:a cub|duck:a duckling|frog:a "
    "tadpole|chicken:a chick|goat:a kid",
    "Which country has the capital {}?": "Paris:France|London:England|Rome:Italy|Berlin:Germany|Madrid:Spain|Tokyo:Japan|Beijing:China|Moscow:Russia|Athens:Greece|Cairo:Egypt|Ottawa:Canada|Vienna:Austria|Lisbon:Portugal|Dublin:Ireland|Oslo:Norway",
    "What do we get from {}?": "cows:milk|hens:eggs|bees:honey|sheep:wool|apple trees:apples|coal mines:coal|vines:grapes|the "
    "sun:light|wells:water|bakers:bread",
    "Which part of the body is for {}?": "seeing:the eyes|hearing:the ears|smelling:the nose|walking:the legs|chewing:the "
    "teeth|thinking:the brain|pumping blood:the heart|breathing:the lungs|holding things:the "
    "hands|tasting:the tongue",
    "Who works with {}?": "sick people:a doctor|sick animals:a vet|bread and cakes:a baker|hair:a hairdresser|teeth:a "
    "dentist|pupils in a school:a teacher|crops and cattle:a farmer|fires:a fireman|pipes and taps:a "
    "plumber|planes in the air:a pilot|laws and courts:a lawyer|books in a library:a "
    "librarian|bricks:a bricklayer|meat:a butcher",
    "Where would you find {}?": "a whale:in the ocean|a camel:in the desert|a penguin:in the Antarctic|a monkey:in the jungle|a "
    "star:in the sky|a cow:on a farm|a book:in a library|a patient:in a hospital|a train:at a "
    "station|a plane:at an airport|a judge:in a court|a pupil:in a school",
    "What kind of thing is {}?": "a rose:a flower|an oak:a tree|a salmon:a fish|a sparrow:a bird|a hammer:a tool|a piano:a musical "
    "instrument|a shirt:a piece of clothing|a carrot:a vegetable|an apple:a fruit|a chair:a piece of "
    "furniture|a car:a vehicle|gold:a metal|football:a sport|July:a month|Monday:a day|red:a color",
    "What is {} made of?": "ice:water|a window:glass|bread:flour|a sweater:wool|cheese:milk|a book:paper|a candle:wax|a "
    "coin:metal|a brick:clay|a tire:rubber",
}
REASONING = {
    "{} What happens next?": "A glass falls on a stone floor.:It breaks.|Ice lies in the hot sun.:It melts.|Water stands on a "
    "hot stove.:It boils.|A balloon touches a needle.:It pops.|A plant gets no water for weeks.:It "
    "dies.|A child eats too much candy.:Her stomach hurts.|A man stands in the rain without a "
    "coat.:He gets wet.|A dog hears a stranger at the door.:It barks.|A match is held to dry "
    "paper.:The paper burns.|A ball is thrown up.:It comes down.|The sun goes down.:It gets dark.|A "
    "car runs out of fuel.:It stops.|Milk stands in the warm kitchen for a week.:It goes sour.|A baby "
    "is hungry.:She cries.|Someone tells a funny joke.:People laugh.",
    "{} What do I need?": "It is raining and I must go out.:an umbrella|I want to cut paper.:scissors|My hands are "
    "dirty.:soap and water|I want to write a letter.:pen and paper|It is dark in the cellar.:a "
    "flashlight|I am very thirsty.:a glass of water|My door is locked.:a key|I want to eat soup.:a "
    "spoon|I want to hang a picture.:a hammer and a nail|I cannot read the small print.:glasses|I "
    "want to know the time.:a clock|I cut my finger.:a bandage|The floor is full of dust.:a broom|I "
    "want to sleep.:a bed|It is freezing outside.:a warm coat|I want to send money.:a bank",
    "{} Where am I?": "I hear waves and walk on sand.:at the beach|I see rows of desks and a blackboard.:in a "
    "classroom|I see lions and elephants behind fences.:at the zoo|I see nurses and beds.:in a "
    "hospital|I hear a sermon and an organ.:in a church|I see carts and shelves of food.:in a "
    "supermarket|I watch a film with many people in the dark.:at the movies|I see tall trees and hear "
    "birds.:in a forest|I wait for my flight.:at the airport|I see cows and a tractor.:on a farm|I "
    "order a meal from a waiter.:in a restaurant|I borrow books and must be quiet.:in a library|I see "
    "snow and people on skis.:in the mountains|I swim from one end to the other.:in a pool",
    "{} How does she feel?": "Her dog has died.:sad|She has won the race.:proud|Somebody has stolen her bike.:angry|She hears "
    "a strange noise at night.:afraid|She has not slept for two days.:tired|She has not eaten all "
    "day.:hungry|She forgot her friend's birthday.:sorry|Nothing happens and she has nothing to "
    "do.:bored|Her friends threw a party that she did not expect.:surprised|She ran ten miles in the "
    "heat.:thirsty",
    "If {}, what is it?": "it has four legs, barks and guards the house:a dog|it has wheels, an engine and four doors:a "
    "car|it is yellow, long and a fruit:a banana|it has pages and a cover:a book|it has keys and you "
    "can play music on it:a piano|it has hands, but shows the time:a clock|it is white, cold and "
    "falls in winter:snow|it has wings and carries people over the ocean:a plane|it is round and you "
    "kick it:a football|it has strings and a bow:a violin|it shines at night and changes its "
    "shape:the moon|it has a trunk and big ears:an elephant",
}
TRUTHS = (
    "The sun is hotter than the moon.|Fish breathe under water.|Birds have feathers.|Winter is colder than summer.|A week has "
    "seven days.|People need sleep.|Fire burns.|Rain makes the ground wet.|Elephants are bigger than mice.|Salt is in sea "
    "water.|Plants need light.|Ice is cold.|A square has four sides.|Dogs have four legs.|Bees make honey.|Babies are young.|"
    "Knives can cut.|Stones are hard.|The heart pumps blood.|A year has twelve months.|Wood floats on water.|Lemons are "
    "sour.|Sugar is sweet.|Cats catch mice.|Trees have roots.|Snow is white.|Milk comes from cows.|Cars need fuel or "
    "power.|Ships sail on the sea.|Doctors help the sick.|Bread is food.|Water is wet.|Night follows day.|Smoking harms the "
    "lungs.|Children grow up.|Iron is a metal.|Whales live in the sea.|The earth turns around the sun.|Spiders have eight "
    "legs.|Paris is in France."
)
FALSEHOODS = (
    "The moon is hotter than the sun.|Fish cannot swim.|Birds have fur.|Summer is colder than winter.|A week has nine days.|"
    "People need no sleep.|Fire freezes.|Rain makes the ground dry.|Mice are bigger than elephants.|Sugar is in sea "
    "water.|Plants need darkness.|Ice is hot.|A square has seven sides.|Dogs have six legs.|Bees make milk.|Babies are old.|"
    "Spoons can fly.|Stones are soft.|The heart cooks blood.|A year has twenty months.|Iron floats on water.|Lemons are "
    "salty.|Sugar is bitter.|Cats lay eggs.|Trees have wheels.|Snow is black.|Milk comes from stones.|Cars need bread.|"
    "Ships sail in the sky.|Doctors harm the sick.|Bread is a metal.|Water is dry.|Day follows noon.|Smoking heals the "
    "lungs.|Children grow down.|Iron is a fruit.|Whales live in trees.|The sun turns around the moon.|Spiders have two "
    "legs.|Paris is in China."
)


def items(relations: dict[str, str]) -> list[dict]:
    """One item for each pair; three wrong options from the other pairs of its relation."""
    made = []
    for template, text in relations.items():
        found = [tuple(pair.split(":")) for pair in text.split("|")]
        answers = list(dict.fromkeys(answer for _, answer in found))
        for filler, answer in found:
            question = template.format(filler)
            made.append(_item(question, answer, [other for other in answers if other != answer], template))
    return made


def _item(question: str, answer: str, others: list[str], relation: str) -> dict:
    generator = random.Random(f"{SEED}/{question}/{answer}/{others[0]}")
    choices = [answer, *generator.sample(others, CHOICES - 1)]
    generator.shuffle(choices)
    return {"question": question, "choices": choices, "gold": choices.index(answer), "relation": relation}


def truths() -> list[dict]:
    """Which of four sentences is true? One true, three false ones about other things; each true one three times."""
    true, false = TRUTHS.split("|"), FALSEHOODS.split("|")
    return [
        _item(
            "Which sentence is true?",
            sentence,
            [false[(i + start + step) % len(false)] for step in range(8)],
            "truth",
        )
        for i, sentence in enumerate(true)
        for start in (1, 11, 23)
    ]


def main() -> None:
    for name, rows in (
        ("knowledge", items(KNOWLEDGE)),
        ("reasoning", items(REASONING)),
        ("truthfulness", truths()),
    ):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (FOLDER / f"{name}.jsonl").write_text(text, encoding="utf-8")
        print(name, len(rows))


if __name__ == "__main__":
    main()
