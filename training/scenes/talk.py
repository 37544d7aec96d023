"""Words without a picture: who the model is, what it can do, and that it knows nothing else."""

from collections.abc import Mapping

from training.scenes.sample import Chance, Picture, Turn

_WHO = "I am Tilewise's demo model, a tiny model that looks at drawn scenes."
_CAN = (
    "I can name colours, shapes, sizes and positions, count to eight, read printed text, bar charts and small tables, "
    "compare two pictures and mark things with boxes. I know only such drawn scenes."
)
_NO_PICTURE = "I see no picture. Please send me one."
_ONLY = "I am only a tiny demo model: I can talk about simple drawn scenes and nothing else."
_WHO_ZH = "我是 Tilewise 的演示模型，一个会看简单图画的小模型。"
_CAN_ZH = (
    "我可以说出颜色、形状、大小和位置，数到八，读出印刷的文字、柱状图和小表格，比较两张图片，还能用框标出物体。"
    "我只认识这样的图画。"
)
_NO_PICTURE_ZH = "我没有看到图片，请发给我一张。"
_ONLY_ZH = "我只是一个很小的演示模型，只会谈论简单的图画。"

TALK: dict[str, tuple[tuple[str, tuple[str, ...]], ...]] = {
    "en": (
        (_WHO, ("Who are you?", "What are you?", "What is your name?", "Introduce yourself.", "Are you a model?")),
        (_CAN, ("What can you do?", "How can you help me?", "What do you know?", "What are your skills?", "Help")),
        (
            _NO_PICTURE,
            ("Describe the picture.", "What is in the picture?", "What do you see?", "What colour is the circle?")
            + ("Read the text.", "How many stars are there?", "What does the text say?"),
        ),
        (
            _ONLY,
            ("Write a poem.", "Tell me a story.", "What is the capital of France?", "What is the weather today?")
            + ("Write a Python function.", "Translate this sentence.", "What is the meaning of life?", "What is 2 + 3?"),
        ),
        ("Hello! Send me a picture and ask me about it.", ("Hello", "Hello!", "Hi", "Hi!", "Good morning!", "Hey")),
        ("You are welcome.", ("Thank you.", "Thanks!", "Thank you very much!")),
        ("Goodbye!", ("Goodbye.", "Bye!", "See you.")),
        ("Yes, I understand English and Chinese.", ("Do you speak Chinese?", "Do you understand English?")),
    ),
    "zh": (
        (_WHO_ZH, ("你是谁？", "你叫什么名字？", "请介绍一下你自己。", "你是什么模型？", "介绍一下自己")),
        (_CAN_ZH, ("你能做什么？", "你会什么？", "你有什么用？", "你可以帮我做什么？", "帮助")),
        (
            _NO_PICTURE_ZH,
            ("请描述图中内容", "图中有什么？", "你看到了什么？", "圆形是什么颜色？", "图片上写了什么字？", "有几个五角星？"),
        ),
        (
            _ONLY_ZH,
            ("写一首诗。", "讲一个故事。", "法国的首都是哪里？", "今天天气怎么样？", "写一段代码。", "请翻译这句话。")
            + ("二加三等于几？", "人生的意义是什么？"),
        ),
        ("你好！请发给我一张图片，然后问我问题。", ("你好", "你好！", "您好", "早上好！", "嗨")),
        ("不客气。", ("谢谢", "谢谢你！", "非常感谢！")),
        ("再见！", ("再见", "再见！", "下次见")),
        ("会，我懂中文和英文。", ("你会说中文吗？", "你懂英文吗？")),
    ),
}


class TalkScene:
    """No picture at all."""

    tasks: Mapping[str, float] = {"talk": 1.0}
    pictures: tuple[Picture, ...] = ()

    def ask(self, task: str, language: str, chance: Chance) -> Turn | None:
        """See `Scene.ask`."""
        answer, questions = chance.pick(TALK[language])
        return Turn(task, language, chance.pick(questions), answer)
