"""The project's own bilingual sentences: the written ones in sentences/, and many more made from patterns, seeded."""

import random
from pathlib import Path

FOLDER = Path(__file__).parent / "sentences"

# Singular and plural, then Chinese with its measure word.
SHAPES = (
    ("circle", "circles", "个圆形"),
    ("square", "squares", "个正方形"),
    ("triangle", "triangles", "个三角形"),
    ("rectangle", "rectangles", "个长方形"),
    ("star", "stars", "颗五角星"),
    ("house", "houses", "座房子"),
    ("tree", "trees", "棵树"),
    ("flower", "flowers", "朵花"),
    ("car", "cars", "辆汽车"),
    ("boat", "boats", "条小船"),
    ("cat", "cats", "只小猫"),
    ("dog", "dogs", "只小狗"),
    ("bird", "birds", "只小鸟"),
    ("fish", "fish", "条鱼"),
    ("cup", "cups", "个杯子"),
    ("book", "books", "本书"),
)
COLOURS = (
    ("red", "红色"),
    ("orange", "橙色"),
    ("yellow", "黄色"),
    ("green", "绿色"),
    ("blue", "蓝色"),
    ("purple", "紫色"),
    ("pink", "粉色"),
    ("brown", "棕色"),
    ("grey", "灰色"),
    ("black", "黑色"),
    ("white", "白色"),
)
COUNTS = (
    ("two", "两"),
    ("three", "三"),
    ("four", "四"),
    ("five", "五"),
    ("six", "六"),
    ("seven", "七"),
    ("eight", "八"),
    ("nine", "九"),
    ("ten", "十"),
)
PLACES = (
    ("on the left", "左边"),
    ("on the right", "右边"),
    ("at the top", "上方"),
    ("at the bottom", "下方"),
    ("in the middle", "中间"),
    ("in the top left corner", "左上角"),
    ("in the top right corner", "右上角"),
    ("in the bottom left corner", "左下角"),
    ("in the bottom right corner", "右下角"),
    ("in the background", "背景中"),
)
SIZES = (("small", "小"), ("large", "大"), ("tiny", "很小"), ("huge", "巨大"))

# Fields: one, many and zh of a thing; c of a colour; n of a count; p of a place; s of a size; 2 marks a second one.
ENGLISH = (
    "There is a {c} {one} {p}.",
    "There are {n} {c} {many} in the picture.",
    "The {one} {p} is {c}.",
    "How many {c} {many} are there?",
    "What colour is the {one} {p}?",
    "I can see a {s} {c} {one} and {n} {c2} {many2}.",
    "The {c} {one} is to the left of the {c2} {one2}.",
    "The {c} {one} is above the {c2} {one2}.",
    "The picture shows {n} {many}: all of them are {c}.",
    "Where is the {s} {c} {one}? It is {p}.",
)
CHINESE = (
    "{p}有一{zh}，颜色是{c}。",
    "图中有{n}{zh}，都是{c}的。",
    "{p}的那{zh}是{c}的。",
    "图中有几{zh}是{c}的？",
    "{p}的那{zh}是什么颜色？",
    "我看到一{zh}是{c}的，还有{n}{zh2}是{c2}的。",
    "{c}的那{zh}在{c2}的那{zh2}左边。",
    "{c}的那{zh}在{c2}的那{zh2}上面。",
    "这张图片里有{n}{zh}，看起来{s}，颜色是{c}。",
    "{c}的那{zh}在哪里？它在图片的{p}。",
)


def written_sentences() -> list[str]:
    """The sentences of sentences/en.txt and sentences/zh.txt, in order."""
    return [line for name in ("en", "zh") for line in (FOLDER / f"{name}.txt").read_text("utf-8").splitlines()]


def patterned_sentences(num_each: int, seed: int = 0) -> list[str]:
    """`num_each` English sentences from the patterns, each followed by a Chinese one."""
    chance = random.Random(seed)

    def pick(pool: tuple) -> tuple:
        # Random.random is the one method whose sequence Python promises to keep between versions.
        return pool[int(chance.random() * len(pool))]

    sentences = []
    for number in range(num_each):
        first, second = pick(SHAPES), pick(SHAPES)
        shapes = {"one": first[0], "many": first[1], "zh": first[2]}
        shapes |= {"one2": second[0], "many2": second[1], "zh2": second[2]}
        words = {"c": pick(COLOURS), "c2": pick(COLOURS), "n": pick(COUNTS), "p": pick(PLACES), "s": pick(SIZES)}
        for language, patterns in enumerate((ENGLISH, CHINESE)):
            chosen = {name: pair[language] for name, pair in words.items()}
            sentences.append(patterns[number % len(patterns)].format(**shapes, **chosen))
    return sentences
