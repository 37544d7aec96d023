"""Names in both languages, and the wordings of questions with their answers.

A wording of a question fixes the wording of its answer, so that an answer is right or wrong to the letter.
"""

# rgb, English, Chinese.
COLOURS = (
    ((220, 40, 40), "red", "红色"),
    ((245, 140, 30), "orange", "橙色"),
    ((250, 215, 40), "yellow", "黄色"),
    ((40, 160, 70), "green", "绿色"),
    ((45, 95, 215), "blue", "蓝色"),
    ((130, 60, 180), "purple", "紫色"),
    ((245, 150, 190), "pink", "粉色"),
    ((130, 80, 45), "brown", "棕色"),
    ((130, 130, 130), "grey", "灰色"),
    ((25, 25, 25), "black", "黑色"),
    ((250, 250, 250), "white", "白色"),
)
BACKGROUNDS = {
    "white": ((255, 255, 255), "white", "白色"),
    "light grey": ((222, 222, 222), "light grey", "浅灰色"),
    "light blue": ((205, 228, 250), "light blue", "浅蓝色"),
    "light green": ((210, 240, 210), "light green", "浅绿色"),
    "light yellow": ((253, 247, 205), "light yellow", "浅黄色"),
    "light pink": ((252, 224, 230), "light pink", "浅粉色"),
    "dark blue": ((18, 28, 78), "dark blue", "深蓝色"),
    "dark green": ((14, 62, 36), "dark green", "深绿色"),
    "black": ((8, 8, 8), "black", "黑色"),
}
# English one, many, Chinese.
SHAPES = (
    ("circle", "circles", "圆形"),
    ("square", "squares", "正方形"),
    ("triangle", "triangles", "三角形"),
    ("star", "stars", "五角星"),
    ("rectangle", "rectangles", "长方形"),
    ("diamond", "diamonds", "菱形"),
    ("cross", "crosses", "十字形"),
    ("heart", "hearts", "心形"),
)
# Cells of a 3x3 grid, row by row: English, Chinese.
PLACES = (
    ("at the top left", "左上角"),
    ("at the top", "上方"),
    ("at the top right", "右上角"),
    ("on the left", "左边"),
    ("in the middle", "中间"),
    ("on the right", "右边"),
    ("at the bottom left", "左下角"),
    ("at the bottom", "下方"),
    ("at the bottom right", "右下角"),
)
SIDES = (("to the left of", "左边"), ("to the right of", "右边"), ("above", "上面"), ("below", "下面"))

_EN: dict[str, tuple[tuple[str, str], ...]] = {
    "colour by shape": (
        ("What colour is the {shape}?", "The {shape} is {colour}."),
        ("What is the color of the {shape}?", "{colour}."),
        ("Which colour does the {shape} have?", "It is {colour}."),
        ("Tell me the colour of the {shape}.", "The {shape} is {colour}."),
        ("What color is the {shape} in this picture? Answer with one word.", "{colour}."),
    ),
    "colour by place": (
        ("What colour is the object {at}?", "It is {colour}."),
        ("Which color does the shape {at} have?", "{colour}."),
        ("There is something {at}. What colour is it?", "It is {colour}."),
        ("Name the colour of the shape {at}.", "{colour}."),
    ),
    "shape by colour": (
        ("What shape is the {colour} object?", "It is a {shape}."),
        ("What is the shape of the {colour} object?", "A {shape}."),
        ("Which shape is {colour}?", "The {shape} is {colour}."),
        ("What is the {colour} thing?", "It is a {shape}."),
    ),
    "shape by place": (
        ("What shape is {at}?", "A {shape}."),
        ("Which shape do you see {at}?", "I see a {shape}."),
        ("What is the object {at}?", "It is a {colour} {shape}."),
        ("Name the shape {at}.", "A {shape}."),
    ),
    "position": (
        ("Where is the {thing}?", "The {thing} is {at}."),
        ("In which part of the picture is the {thing}?", "It is {at}."),
        ("Where do you see the {thing}?", "I see it {at}."),
        ("Describe the position of the {thing}.", "The {thing} is {at}."),
    ),
    "size": (
        ("Is the {thing} small or large?", "The {thing} is {size}."),
        ("How big is the {thing}?", "It is {size}."),
        ("Is the {thing} large?", "{yes_large}"),
        ("What size does the {thing} have?", "It is {size}."),
    ),
    "count": (
        ("How many {things} are there?", "{there_are}."),
        ("How many {things} are in the picture?", "{number}."),
        ("Count the {things}.", "{number}."),
        ("What is the number of {things} in this image?", "{there_are}."),
        ("How many {things} can you see?", "I can see {number}."),
    ),
    "relation": (
        ("Is the {first} {relation} the {second}?", "{yes}"),
        ("The {first} is {relation} the {second}. Is that right?", "{yes}"),
        ("Where is the {first}, seen from the {second}?", "The {first} is {side} the {second}."),
        ("Where is the {first} relative to the {second}?", "It is {side} the {second}."),
    ),
    "absent": (
        ("What colour is the {shape}?", "There is no {shape} in the picture."),
        ("Where is the {thing}?", "There is no {thing} in the picture."),
        ("Is there a {thing} in the picture?", "No, there is no {thing}."),
    ),
    "present": (("Is there a {thing} in the picture?", "Yes, there is a {thing} {at}."),),
    "background": (
        ("What colour is the background?", "The background is {background}."),
        ("What is the background colour of the picture?", "{background}."),
    ),
    "box": (
        ("Where exactly is the {thing}? Give its bounding box.", "<ref>{thing}</ref><box>[{box}]</box>"),
        (
            "Please provide the bounding box coordinate of the region this sentence describes: {thing}",
            "<ref>{thing}</ref><box>[{box}]</box>",
        ),
        ("Find the {thing} and mark it with a box.", "<ref>{thing}</ref><box>[{box}]</box>"),
        ("Locate the {thing}.", "<ref>{thing}</ref><box>[{box}]</box>"),
    ),
    "boxes": (
        ("Find all {things} and mark them with boxes.", "<ref>{things}</ref><box>[{box}]</box>"),
        ("Give the bounding boxes of all {things}.", "<ref>{things}</ref><box>[{box}]</box>"),
    ),
    "describe": (
        ("Describe the picture.", "The picture shows {content}"),
        ("Please describe this image in detail.", "The picture shows {content}"),
        ("What is in the picture?", "There is {content}"),
        ("What do you see?", "I see {content}"),
        ("Describe what the image shows.", "The image shows {content}"),
    ),
    "text": (
        ("What does the text say?", "{text}"),
        ("Read the text in the picture.", "{text}"),
        ("What is written in the picture?", 'The text says "{text}".'),
        ("Which text do you see?", 'I see "{text}".'),
        ("OCR this image.", "{text}"),
    ),
    "text by colour": (
        ("What does the {colour} text say?", "{text}"),
        ("Read the text written in {colour}.", 'It says "{text}".'),
        ("What is written in {colour}?", "{text}"),
    ),
    "text by place": (
        ("What does the {ordinal} line from the top say?", "{text}"),
        ("Read line {number}.", "{text}"),
    ),
    "small": (
        ("What does the small text say?", "{text}"),
        ("Read the small text.", "{text}"),
        ("There is some small print in the picture. What does it say?", 'It says "{text}".'),
        ("Zoom in: which small text is written here?", "{text}"),
    ),
    "small by colour": (
        ("What does the small {colour} text say?", "{text}"),
        ("Read the small print in {colour}.", 'It says "{text}".'),
    ),
    "lines": (
        ("Read all the text, from top to bottom.", "{text}"),
        ("Transcribe the text in the picture line by line.", "{text}"),
        ("Extract all text.", "{text}"),
    ),
    "value": (
        ("What is the value of {name}?", "{value}."),
        ("Which value does {name} have in the chart?", "{name} has {value}."),
        ("How high is the bar {name}?", "The value is {value}."),
    ),
    "highest": (
        ("Which bar is the highest?", "{name} is the highest."),
        ("Which one has the largest value in the chart?", "{name}."),
    ),
    "lowest": (
        ("Which bar is the lowest?", "{name} is the lowest."),
        ("Which one has the smallest value in the chart?", "{name}."),
    ),
    "bars": (("How many bars does the chart have?", "{number}."), ("Count the bars.", "There are {number} bars.")),
    "higher": (("Is {name} higher than {other}?", "{yes}"), ("Which is higher, {name} or {other}?", "{winner}.")),
    "cell": (
        ("What is the {column} of {name}?", "{value}."),
        ("In the table, which value is in the row {name} and the column {column}?", "{value}."),
        ("Look up the {column} of {name}.", "It is {value}."),
    ),
    "rows": (
        ("How many rows does the table have, without the header?", "{number}."),
        ("Which names are listed in the table?", "{names}."),
    ),
    "which has": (
        ("Which picture has a {thing}?", "The {ordinal} picture."),
        ("In which of the two pictures is there a {thing}?", "In the {ordinal} picture."),
        ("Is the {thing} in the first or the second picture?", "In the {ordinal} picture."),
    ),
    "same": (
        ("Are the two pictures the same?", "{yes_same}"),
        ("Is there any difference between the two pictures?", "{yes_different}"),
    ),
    "difference": (
        ("What is the difference between the two pictures?", "{difference}"),
        ("Compare the first picture and the second picture.", "{difference}"),
        ("Spot the difference.", "{difference}"),
    ),
    "more": (
        ("Which picture has more objects?", "{more}"),
        ("Are there more objects in the first or in the second picture?", "{more}"),
    ),
    "count in one": (("How many objects are in the {ordinal} picture?", "{number}."),),
}
_ZH: dict[str, tuple[tuple[str, str], ...]] = {
    "colour by shape": (
        ("{shape}是什么颜色？", "{shape}是{colour}的。"),
        ("{shape}是什么颜色的？", "{colour}。"),
        ("图中的{shape}是什么颜色？", "它是{colour}的。"),
        ("请说出{shape}的颜色。", "{shape}是{colour}的。"),
        ("图中{shape}的颜色是什么？请用一个词回答。", "{colour}。"),
    ),
    "colour by place": (
        ("{at}的物体是什么颜色？", "它是{colour}的。"),
        ("{at}的图形是什么颜色的？", "{colour}。"),
        ("{at}有一个图形，它是什么颜色？", "它是{colour}的。"),
        ("请说出{at}图形的颜色。", "{colour}。"),
    ),
    "shape by colour": (
        ("{colour}的物体是什么形状？", "它是{shape}。"),
        ("{colour}的图形是什么？", "{shape}。"),
        ("哪个图形是{colour}的？", "{shape}是{colour}的。"),
        ("图中{colour}的东西是什么？", "它是{shape}。"),
    ),
    "shape by place": (
        ("{at}是什么形状？", "{shape}。"),
        ("你在{at}看到了什么形状？", "我看到了{shape}。"),
        ("{at}的物体是什么？", "它是{colour}{shape}。"),
        ("请说出{at}图形的形状。", "{shape}。"),
    ),
    "position": (
        ("{thing}在哪里？", "{thing}在{at}。"),
        ("{thing}在图片的什么位置？", "它在{at}。"),
        ("你在哪里看到了{thing}？", "我在{at}看到了它。"),
        ("请描述{thing}的位置。", "{thing}在{at}。"),
    ),
    "size": (
        ("{thing}是大的还是小的？", "{thing}是{size}的。"),
        ("{thing}有多大？", "它是{size}的。"),
        ("{thing}大吗？", "{yes_large}"),
        ("{thing}的大小怎么样？", "它是{size}的。"),
    ),
    "count": (
        ("有几个{things}？", "有{number}个{things}。"),
        ("图中有多少个{things}？", "{number}个。"),
        ("请数一数{things}。", "{number}个。"),
        ("图片中{things}的数量是多少？", "有{number}个{things}。"),
        ("你能看到几个{things}？", "我能看到{number}个。"),
    ),
    "relation": (
        ("{first}在{second}的{relation}吗？", "{yes}"),
        ("{first}在{second}的{relation}，对吗？", "{yes}"),
        ("从{second}看，{first}在哪里？", "{first}在{second}的{side}。"),
        ("{first}在{second}的哪一边？", "它在{second}的{side}。"),
    ),
    "absent": (
        ("{shape}是什么颜色？", "图中没有{shape}。"),
        ("{thing}在哪里？", "图中没有{thing}。"),
        ("图中有{thing}吗？", "没有，图中没有{thing}。"),
    ),
    "present": (("图中有{thing}吗？", "有，{at}有一个{thing}。"),),
    "background": (
        ("背景是什么颜色的？", "背景是{background}的。"),
        ("图片的背景颜色是什么？", "{background}。"),
    ),
    "box": (
        ("{thing}的准确位置在哪里？请给出边界框。", "<ref>{thing}</ref><box>[{box}]</box>"),
        ("请给出这句话描述的区域的边界框坐标：{thing}", "<ref>{thing}</ref><box>[{box}]</box>"),
        ("请找出{thing}，并用框标出来。", "<ref>{thing}</ref><box>[{box}]</box>"),
        ("请定位{thing}。", "<ref>{thing}</ref><box>[{box}]</box>"),
    ),
    "boxes": (
        ("请找出所有的{things}，并用框标出来。", "<ref>{things}</ref><box>[{box}]</box>"),
        ("请给出所有{things}的边界框。", "<ref>{things}</ref><box>[{box}]</box>"),
    ),
    "describe": (
        ("请描述图中内容", "这张图片展示了{content}"),
        ("请描述这张图片。", "这张图片展示了{content}"),
        ("请详细描述一下这张图片的内容。", "这张图片展示了{content}"),
        ("这张图片里有什么？", "图中有{content}"),
        ("你看到了什么？", "我看到了{content}"),
        ("描述一下图片", "图片展示了{content}"),
    ),
    "text": (
        ("图片上写了什么字？", "{text}"),
        ("请读出图中的文字。", "{text}"),
        ("图中写着什么？", "图中写着“{text}”。"),
        ("你看到了什么文字？", "我看到了“{text}”。"),
        ("识别图中文字", "{text}"),
    ),
    "text by colour": (
        ("{colour}的字写的是什么？", "{text}"),
        ("请读出{colour}的文字。", "写的是“{text}”。"),
        ("{colour}的文字是什么？", "{text}"),
    ),
    "text by place": (
        ("从上往下第{number}行写的是什么？", "{text}"),
        ("请读出第{number}行。", "{text}"),
    ),
    "small": (
        ("小字写的是什么？", "{text}"),
        ("请读出图中的小字。", "{text}"),
        ("图片里有一些很小的字，写的是什么？", "写的是“{text}”。"),
        ("放大看看，这里的小字是什么？", "{text}"),
    ),
    "small by colour": (
        ("{colour}的小字写的是什么？", "{text}"),
        ("请读出{colour}的小字。", "写的是“{text}”。"),
    ),
    "lines": (
        ("请从上到下读出所有文字。", "{text}"),
        ("请逐行抄写图片中的文字。", "{text}"),
        ("提取所有文字。", "{text}"),
    ),
    "value": (
        ("{name}的数值是多少？", "{value}。"),
        ("图表中{name}的值是多少？", "{name}是{value}。"),
        ("{name}这一柱有多高？", "数值是{value}。"),
    ),
    "highest": (("哪一柱最高？", "{name}最高。"), ("图表中谁的数值最大？", "{name}。")),
    "lowest": (("哪一柱最低？", "{name}最低。"), ("图表中谁的数值最小？", "{name}。")),
    "bars": (("这个图表有几个柱子？", "{number}个。"), ("请数一数柱子。", "有{number}个柱子。")),
    "higher": (("{name}比{other}高吗？", "{yes}"), ("{name}和{other}哪个更高？", "{winner}。")),
    "cell": (
        ("{name}的{column}是多少？", "{value}。"),
        ("表格中{name}这一行、{column}这一列的值是多少？", "{value}。"),
        ("请查一下{name}的{column}。", "是{value}。"),
    ),
    "rows": (("不算表头，表格有几行？", "{number}行。"), ("表格里列出了哪些名称？", "{names}。")),
    "which has": (
        ("哪张图片里有{thing}？", "第{ordinal}张图片。"),
        ("两张图片中，哪一张有{thing}？", "第{ordinal}张图片有。"),
        ("{thing}在第一张还是第二张图片里？", "在第{ordinal}张图片里。"),
    ),
    "same": (("这两张图片一样吗？", "{yes_same}"), ("这两张图片有不同的地方吗？", "{yes_different}")),
    "difference": (
        ("这两张图片有什么不同？", "{difference}"),
        ("请比较第一张图片和第二张图片。", "{difference}"),
        ("找出不同之处。", "{difference}"),
    ),
    "more": (("哪张图片里的物体更多？", "{more}"), ("第一张和第二张图片，哪张的物体更多？", "{more}")),
    "count in one": (("第{ordinal}张图片里有几个物体？", "{number}个。"),),
}
WORDINGS = {"en": _EN, "zh": _ZH}
ORDINALS = {"en": ("first", "second", "third", "fourth", "fifth", "sixth"), "zh": ("一", "二", "三", "四", "五", "六")}


def yes(language: str, value: bool) -> str:
    """Yes or no, as a whole answer."""
    return ("Yes." if value else "No.") if language == "en" else ("是的。" if value else "不是。")


def join(language: str, parts: list[str]) -> str:
    """Parts as a list in words."""
    if language == "zh":
        return "、".join(parts)
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
