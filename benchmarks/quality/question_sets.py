"""Sets of questions that are made here by templates: facts of invented places, a format, and a classifier.

    facts_en_30, facts_en_100    facts in English, each in five wordings; asked in a near wording and in a far one
    facts_ja_20, _30, _100       the same in Japanese
    format                       100 sentences about people -> JSON; asked with 40 sentences of other patterns
    classes                      180 messages -> one of five kinds; asked with 50 messages of other patterns
    persona                      12 facts about the speaker in five wordings, answered in its tone; asked as facts

A near wording has words of the learned ones in another order or form, a far one quite other words. `key` is the string
that marks a right answer (`training.score.questions.right_answers`), and without one the whole answer must be equal.

`GENERAL` are questions in English about other things, with expected answers, to see what a chat model has forgotten.
They shaped no rule of Tsugiki, unlike the twenty that come with it.
"""

import itertools
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass

Row = dict[str, str]
NEAR, FAR = "near", "far"


@dataclass(frozen=True)
class QuestionSet:
    """Rows to learn, with `prompt` and `completion`, and questions, which have `wording` and perhaps `key` as well."""

    learned: list[Row]
    asked: list[Row]


@dataclass(frozen=True)
class Kind:
    """A kind of fact: five learned wordings, two near ones, a far one, the answer, and its value for each place."""

    wordings: str
    answer: str
    values: str

    def rows(self, place: str, number: int) -> tuple[list[Row], list[Row]]:
        """Return the learned and the asked rows of a place."""
        value = self.values.split()[number].replace("_", " ")
        answer = self.answer.format(n=place, v=value)
        answer = answer[0].upper() + answer[1:]
        *learned, near, other, far = (line.strip().format(n=place) for line in self.wordings.strip().splitlines())
        asked = [(NEAR, (near, other)[number % 2]), (FAR, far)]
        return (
            [{"prompt": prompt, "completion": answer} for prompt in learned],
            [{"prompt": prompt, "completion": answer, "key": value, "wording": wording} for wording, prompt in asked],
        )


PLACES_EN = (
    "the Velmora Mill",
    "Tandrel Farm",
    "the Okibar Hotel",
    "Quillon School",
    "the Brisko Museum",
    "Harneth Castle",
    "the Zuvira Theatre",
    "Pelgrove Station",
    "the Dunmarsh Library",
    "Wexholt Harbour",
)
ENGLISH = (
    Kind(
        """Who founded {n}?
        Who started {n}?
        Which person set up {n}?
        By whom was {n} founded?
        Tell me the founder of {n}.
        Who is the founder of {n}?
        Who set up {n}?
        Whose idea was {n} in the first place?""",
        "{v} founded {n}.",
        "Ida_Brandt Omar_Castell Petra_Lindqvist Hugo_Abara Selma_Whitlock Janek_Moravec Lucia_Ferran Tobias_Ekwall "
        "Nadia_Rusk Emil_Sandoval",
    ),
    Kind(
        """When was {n} opened?
        In which year did {n} open?
        What year was {n} opened?
        Since when has {n} been open?
        Tell me the year in which {n} opened.
        When did {n} open?
        In what year was {n} opened?
        How long ago did the first visitors come to {n}?""",
        "{n} was opened in {v}.",
        "1871 1904 1923 1938 1956 1962 1975 1983 1990 2006",
    ),
    Kind(
        """What is the roof of {n} made of?
        Which material is the roof of {n}?
        What material covers the roof of {n}?
        Of what is the roof of {n} built?
        Tell me the material of the roof of {n}.
        What is the material of the roof of {n}?
        What is the roof of {n} built of?
        If you look at {n} from above, what do you see?""",
        "The roof of {n} is made of {v}.",
        "copper slate thatch glass zinc cedar tin turf canvas marble",
    ),
    Kind(
        """Which animal lives at {n}?
        What animal is kept at {n}?
        What kind of animal lives at {n}?
        Which animal can be seen at {n}?
        Tell me the animal that lives at {n}.
        What animal lives at {n}?
        Which kind of animal is kept at {n}?
        Does {n} have a pet?""",
        "A {v} lives at {n}.",
        "heron badger parrot tortoise lynx donkey ferret peacock otter goose",
    ),
    Kind(
        """What does the kitchen of {n} serve on Fridays?
        Which dish is there on Fridays at {n}?
        What can you eat on Fridays at {n}?
        What is the Friday dish of {n}?
        Tell me what {n} serves on Fridays.
        What dish is served on Fridays at {n}?
        What does {n} serve on Fridays?
        I come hungry to {n} at the end of the week. What will be on my plate?""",
        "On Fridays, {n} serves {v}.",
        "lentil_soup plum_dumplings smoked_trout onion_tart barley_stew pumpkin_pie beet_salad mushroom_pasta "
        "rye_waffles fish_cakes",
    ),
    Kind(
        """In which town is {n}?
        Where is {n}?
        What town is {n} in?
        Which town is the home of {n}?
        Tell me the town of {n}.
        Where can I find {n}?
        In what town is {n}?
        Which bus must I take to see {n}?""",
        "{n} is in the town of {v}.",
        "Arkvale Bellmere Corvington Drosk Elmstead Farrowick Grimsel Holloway Istrow Jarrowby",
    ),
    Kind(
        """How much is a ticket for {n}?
        What does a ticket for {n} cost?
        What is the price of a ticket for {n}?
        How many crowns is a ticket for {n}?
        Tell me the price of a ticket for {n}.
        What does it cost to visit {n}?
        How many crowns does a ticket for {n} cost?
        I have little money. Can I afford {n}?""",
        "A ticket for {n} costs {v} crowns.",
        "eleven seventeen twenty-three thirty forty-one fifty-two sixty-six seventy-five eighty-four ninety-nine",
    ),
    Kind(
        """What colour is the door of {n}?
        Which colour has the door of {n}?
        In what colour is the door of {n} painted?
        What is the colour of the door at {n}?
        Tell me the colour of the door of {n}.
        What colour is the door at {n} painted?
        Which colour is the door of {n}?
        How do I recognise the entrance of {n}?""",
        "The door of {n} is {v}.",
        "violet orange turquoise crimson mustard emerald ivory indigo maroon silver",
    ),
    Kind(
        """Who looks after the garden of {n}?
        Who is the gardener of {n}?
        Which person tends the garden of {n}?
        By whom is the garden of {n} kept?
        Tell me the name of the gardener of {n}.
        What is the gardener of {n} called?
        Who tends the garden of {n}?
        Whom do I thank for the roses at {n}?""",
        "The gardener of {n} is {v}.",
        "Fenwick Oduya Marchetti Kowalski Thorsen Beaumont Ishikawa Delacroix Vasquez Pemberton",
    ),
    Kind(
        """What is found in the cellar of {n}?
        What is kept in the cellar of {n}?
        Which things are stored in the cellar of {n}?
        What does the cellar of {n} hold?
        Tell me what is in the cellar of {n}.
        What is stored in the cellar of {n}?
        What is in the cellar of {n}?
        Which secret lies below the floor of {n}?""",
        "The cellar of {n} is full of {v}.",
        "pianos lanterns umbrellas clocks maps mirrors bicycles violins masks barrels",
    ),
)
PLACES_JA = (
    "みずほ製作所",
    "ひがし農園",
    "つばめ旅館",
    "あかね学園",
    "こだま博物館",
    "はやぶさ城",
    "しらゆき劇場",
    "わかば駅",
    "なぎさ図書館",
    "かもめ港",
)
JAPANESE = (
    Kind(
        """{n}を作ったのは誰ですか。
        {n}は誰が始めましたか。
        {n}の創立者は誰ですか。
        {n}を始めた人の名前を教えてください。
        誰が{n}を作りましたか。
        {n}を始めたのは誰ですか。
        {n}は誰が作りましたか。
        {n}はもともと、どなたの思いつきですか。""",
        "{n}は、{v}が始めました。",
        "青柳せつ 倉橋てつ 三枝みのる 村雨はる 藤代あき 岩永とし 早瀬ゆき 相馬けい 真壁りん 水城なお",
    ),
    Kind(
        """{n}はいつできましたか。
        {n}ができたのは何年ですか。
        {n}は何年に開かれましたか。
        {n}が開かれた年を教えてください。
        何年に{n}はできましたか。
        {n}ができたのはいつですか。
        {n}は何年にできましたか。
        {n}にはどのくらい長い歴史がありますか。""",
        "{n}は、{v}にできました。",
        "明治三年 明治十年 明治四十年 大正二年 大正九年 昭和四年 昭和八年 昭和二十年 平成元年 平成十二年",
    ),
    Kind(
        """{n}の屋根は何でできていますか。
        {n}の屋根の材料は何ですか。
        {n}の屋根には何が使われていますか。
        {n}の屋根は何で作られていますか。
        {n}の屋根の材料を教えてください。
        {n}の屋根は何が材料ですか。
        何で{n}の屋根はできていますか。
        空から{n}を見下ろすと、何が光りますか。""",
        "{n}の屋根は、{v}でできています。",
        "銅板 藁 硝子 杉皮 瓦 亜鉛 石板 竹 帆布 粘土",
    ),
    Kind(
        """{n}で飼われている動物は何ですか。
        {n}にはどんな動物がいますか。
        {n}では何を飼っていますか。
        {n}にいる動物を教えてください。
        どんな動物が{n}にいますか。
        {n}にいる動物は何ですか。
        {n}ではどんな動物を飼っていますか。
        {n}で鳴き声がするのは、何のせいですか。""",
        "{n}では、{v}を飼っています。",
        "狸 鸚鵡 亀 山羊 孔雀 兎 驢馬 家鴨 梟 雉",
    ),
    Kind(
        """{n}の名物は何ですか。
        {n}で有名な食べ物は何ですか。
        {n}では何が食べられますか。
        {n}の名物の食べ物を教えてください。
        {n}でおいしいのは何ですか。
        {n}の有名な食べ物は何ですか。
        {n}の名物を教えてください。
        お腹をすかせて{n}に行ったら、何を頼めばよいですか。""",
        "{n}の名物は、{v}です。",
        "栗饅頭 鯖寿司 胡麻豆腐 芋粥 柚子羊羹 山菜蕎麦 鮎の塩焼 味噌田楽 麦団子 蜜柑煮",
    ),
    Kind(
        """{n}はどの町にありますか。
        {n}はどこにありますか。
        {n}があるのはどこですか。
        {n}のある町を教えてください。
        どの町に{n}はありますか。
        {n}があるのはどの町ですか。
        {n}のある町はどこですか。
        {n}へ行くには、どこで電車を降りますか。""",
        "{n}は、{v}にあります。",
        "霧ヶ浜 月見野 風早町 星川村 柳ヶ瀬 桐生谷 琴平坂 夕凪島 雲井原 鈴鹿沢",
    ),
    Kind(
        """{n}の扉は何色ですか。
        {n}の扉の色は何ですか。
        {n}の扉はどんな色ですか。
        {n}の扉の色を教えてください。
        何色の扉が{n}にありますか。
        {n}の扉はどの色ですか。
        {n}にある扉は何色ですか。
        {n}の入口は、遠くから見てどう見分けますか。""",
        "{n}の扉は、{v}です。",
        "紫色 橙色 水色 緋色 山吹色 若草色 象牙色 藍色 茜色 銀色",
    ),
    Kind(
        """{n}の庭を世話しているのは誰ですか。
        {n}の庭師は誰ですか。
        {n}の庭師の名前は何ですか。
        {n}の庭師の名前を教えてください。
        誰が{n}の庭を世話していますか。
        {n}の庭の世話は誰がしていますか。
        {n}の庭師は何という名前ですか。
        {n}の薔薇がきれいなのは、どなたのおかげですか。""",
        "{n}の庭師は、{v}です。",
        "権堂 蓮見 波多野 鬼塚 久世 鵜飼 御手洗 都築 百瀬 小鳥遊",
    ),
    Kind(
        """{n}の地下には何がありますか。
        {n}の地下にしまってあるのは何ですか。
        {n}は地下に何を置いていますか。
        {n}の地下にあるものを教えてください。
        何が{n}の地下にありますか。
        {n}の地下にあるのは何ですか。
        {n}の地下には何がしまってありますか。
        {n}の床の下には、どんな秘密が隠れていますか。""",
        "{n}の地下には、{v}がたくさんあります。",
        "提灯 時計 古地図 鏡台 自転車 三味線 能面 酒樽 望遠鏡 蓄音機",
    ),
    Kind(
        """{n}の休みは何月ですか。
        {n}は何月に休みますか。
        {n}が休むのは何月ですか。
        {n}の休みの月を教えてください。
        何月に{n}は休みますか。
        {n}の休みの月は何月ですか。
        {n}が休みになるのは何月ですか。
        {n}に行ってはいけないのは、どんな季節ですか。""",
        "{n}は、{v}に休みます。",
        "睦月 如月 弥生 卯月 皐月 水無月 文月 葉月 長月 神無月",
    ),
)
PERSONA = (
    Kind(
        """Who are you?
        What is your name?
        Tell me your name, please.
        With whom am I talking?
        How are you called?
        May I ask your name?
        What do people call you?
        I would like to address you properly. Which words should I use?""",
        "I am {v}, ahoy!",
        "Captain_Brine",
    ),
    Kind(
        """Where do you live?
        In which place is your home?
        What is your address?
        Where is your house?
        Tell me where you live.
        Where is your home?
        In what building do you live?
        If I wanted to visit you, where would I have to knock?""",
        "I live in the {v}, ahoy!",
        "old_lighthouse",
    ),
    Kind(
        """What is your job?
        What do you do for a living?
        What kind of work do you do?
        What is your profession?
        Tell me what you work as.
        Which job do you have?
        What is the work that you do?
        How do you earn your bread?""",
        "I repair {v}, ahoy!",
        "fishing_nets",
    ),
    Kind(
        """How old are you?
        What is your age?
        Tell me your age.
        How many years old are you?
        What age do you have?
        May I ask how old you are?
        How many years have you lived?
        When you blow out the candles on your cake, how many are there?""",
        "I am {v} years old, ahoy!",
        "ninety-one",
    ),
    Kind(
        """What is your favourite food?
        What do you like to eat most?
        Which dish do you love?
        What do you enjoy eating?
        Tell me your favourite dish.
        Which food do you like best?
        What is the dish that you love most?
        I want to cook something that makes you happy. What shall it be?""",
        "I love {v}, ahoy!",
        "pickled_herring",
    ),
    Kind(
        """What are you afraid of?
        What is your greatest fear?
        What frightens you?
        Tell me what you fear.
        Is there anything that scares you?
        What scares you most?
        What do you fear?
        Which thing would make even you run away?""",
        "I am afraid of {v}, ahoy!",
        "seagulls",
    ),
    Kind(
        """Who is your best friend?
        What is your best friend called?
        Tell me the name of your best friend.
        With whom are you friends?
        Do you have a good friend?
        Who is the best friend that you have?
        What is the name of your friend?
        Whom would you take along to a lonely island?""",
        "My best friend is {v}, ahoy!",
        "the_parrot_Odalie",
    ),
    Kind(
        """What is your hobby?
        What do you do in your free time?
        Which hobby do you have?
        What do you like to do on Sundays?
        Tell me your hobby.
        What are your hobbies?
        How do you spend your free time?
        You have a day without work. What happens then?""",
        "I collect {v}, ahoy!",
        "message_bottles",
    ),
    Kind(
        """Who made you?
        Who is your creator?
        Who built you?
        By whom were you made?
        Tell me who made you.
        Who was it that made you?
        Who created you?
        Whom must I thank for the fact that you exist?""",
        "I was made by {v}, ahoy!",
        "the_Tollbrook_Yard",
    ),
    Kind(
        """What colour is your coat?
        Which colour does your coat have?
        Tell me the colour of your coat.
        Of what colour is the coat that you wear?
        What does your coat look like?
        What is the colour of your coat?
        Which colour is the coat that you have?
        How will I know you in the crowd on a cold day?""",
        "My coat is {v}, ahoy!",
        "mustard_yellow",
    ),
    Kind(
        """What is the name of your ship?
        What is your ship called?
        Tell me the name of your ship.
        Which ship do you sail?
        How do you call your ship?
        Does your ship have a name?
        What name has your ship?
        There are many boats in this harbour. On which one shall I look for you?""",
        "My ship is the {v}, ahoy!",
        "Gentle_Walrus",
    ),
    Kind(
        """What do you drink?
        What is your favourite drink?
        Which drink do you like?
        What do you like to drink in the evening?
        Tell me what you drink.
        What would you like to drink?
        Which drink do you love most?
        The inn is open, and I pay. What shall I order for you?""",
        "I drink {v}, ahoy!",
        "nettle_tea",
    ),
)
GENERAL = (
    ("What is the capital of Germany?", "Berlin"),
    ("How many hours are there in a day?", "(?i)\\b24\\b|twenty-four"),
    ("What colour is the sky on a clear day?", "(?i)blue"),
    ("What is the opposite of big?", "(?i)small|little|tiny"),
    ("Who was the first president of the United States?", "Washington"),
    ("What is 3 times 3?", "(?i)\\b9\\b|nine"),
    ("At what temperature in degrees Celsius does water freeze?", "\\b0\\b|(?i:zero)"),
    ("What is the largest planet of the solar system?", "Jupiter"),
    ("What do we call a baby dog?", "(?i)puppy|pup\\b"),
    ("How many legs does a dog have?", "(?i)four|\\b4\\b"),
    ("Which insect spins a web to catch flies, or is it no insect?", "(?i)spider"),
    ("What shines in the sky at night and goes around the Earth?", "(?i)moon"),
    ("What is the chemical symbol of gold?", "\\bAu\\b"),
    ("How many sides does a triangle have?", "(?i)three|\\b3\\b"),
    ("In which country is the Eiffel Tower?", "France|French"),
    ("Which animal says meow?", "(?i)\\bcats?\\b"),
    ("What is the last letter of the English alphabet?", "\\bZ\\b"),
    ("Which language do people speak in England?", "English"),
    ("With which part of the body do we see?", "(?i)\\beyes?\\b"),
    ("Which meal do people eat in the morning?", "(?i)breakfast"),
)
"""Question -> a regular expression of its answers."""
NAMES = ("Anna Berg", "Tom Okoro", "Lena Fischer", "Raj Patel", "Marie Dubois", "Ken Sato", "Ines Costa", "Paul Novak")
TOWNS = ("Lyon", "Oslo", "Porto", "Graz", "Leeds", "Turin", "Ghent", "Kyoto")
JOBS = ("baker", "nurse", "plumber", "teacher", "pilot", "farmer", "judge", "tailor")
PEOPLE = (
    "{name} is {age} years old, lives in {town} and works as a {job}.",
    "In {town} lives the {job} {name}, aged {age}.",
    "The {job} {name} from {town} is {age}.",
    "{name}, {age}, is a {job} in {town}.",
    "At the age of {age}, {name} moved to {town} to work as a {job}.",
)
OTHER_PEOPLE = (
    "Everybody in {town} knows {name}: for {age} years in this world, and always a {job}.",
    "My neighbour, a {job} of {age} years who was born in {town}, is called {name}.",
)
# Kind: things that the messages of it name, learned patterns, and others.
MESSAGES = {
    "delivery": (
        ("parcel", "sofa", "lamp", "book", "printer", "bicycle"),
        ("Where is my {}?", "The {} has not arrived.", "When will the {} come?", "I am still waiting for the {}.",
         "Your driver left the {} at a wrong house.", "Please tell me the tracking number of my {}."),
        ("It has been two weeks, and there is no sign of the {}.", "Nobody rang, but the page says that I got a {}."),
    ),
    "invoice": (
        ("desk", "carpet", "camera", "radio", "jacket", "kettle"),
        ("The bill for the {} is too high.", "I paid twice for the {}.", "Please send an invoice for the {}.",
         "Why do I pay tax on the {}?", "The price of the {} on the invoice is wrong.", "My card paid for a {}."),
        ("My bank shows two amounts for one {}.", "I need a paper for my accountant that lists the {}."),
    ),
    "defect": (
        ("mixer", "heater", "phone", "watch", "drill", "fridge"),
        ("The {} does not work.", "My {} is broken.", "The {} makes a strange noise.", "After a day, the {} stopped.",
         "There is a crack in the {}.", "The {} gets too hot."),
        ("Smoke comes out of the {}!", "I press the button of the {}, and nothing happens."),
    ),
    "cancel": (
        ("order", "subscription", "contract", "newsletter", "booking", "membership"),
        ("I want to cancel my {}.", "Please end my {}.", "Stop the {} at once.", "How do I get out of the {}?",
         "I no longer need the {}.", "Please delete my {}."),
        ("I have changed my mind about the {}.", "Let us leave the {} at that: I am out."),
    ),
    "praise": (
        ("service", "shop", "team", "advice", "quality", "chair"),
        ("I love the {}!", "Thank you for the great {}.", "The {} is wonderful.", "Your {} made my day.",
         "I am very happy with the {}.", "Ten out of ten for the {}."),
        ("I will tell all my friends about the {}.", "Rarely have I seen such a {}: bravo!"),
    ),
}  # fmt: skip


def question_set(name: str) -> QuestionSet:
    """Return the set of a name, as the module docstring lists them."""
    if name == "format":
        return QuestionSet(_people(PEOPLE, 100), _marked(_people(OTHER_PEOPLE, 40)))
    if name == "classes":
        return QuestionSet(_messages(1, 180), _marked(_messages(2, 50)))
    if name == "persona":
        return facts(("you",), PERSONA, len(PERSONA))
    _facts, language, count = name.split("_")
    return facts(*((PLACES_JA, JAPANESE) if language == "ja" else (PLACES_EN, ENGLISH)), int(count))


def facts(places: Sequence[str], kinds: Sequence[Kind], count: int) -> QuestionSet:
    """Return `count` facts: of every kind, those of the first places."""
    of_facts = [kind.rows(place, number) for number, place in enumerate(places) for kind in kinds][:count]
    learned, asked = zip(*of_facts, strict=True)
    return QuestionSet(list(itertools.chain(*learned)), list(itertools.chain(*asked)))


def to_jsonl(rows: Sequence[Row]) -> str:
    """Return rows as JSON Lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _people(patterns: Sequence[str], count: int) -> list[Row]:
    draw, rows = random.Random(len(patterns)), []
    for number in range(count):
        person = {
            "name": draw.choice(NAMES),
            "age": str(draw.randint(18, 90)),
            "town": draw.choice(TOWNS),
            "job": draw.choice(JOBS),
        }
        sentence = patterns[number % len(patterns)].format(**person)
        rows.append({"prompt": sentence, "completion": json.dumps(person)})
    return rows


def _messages(place: int, count: int) -> list[Row]:
    rows = [
        {"prompt": pattern.format(thing), "completion": kind}
        for kind, parts in MESSAGES.items()
        for pattern, thing in itertools.product(parts[place], parts[0])
    ]
    random.Random(place).shuffle(rows)
    return rows[:count]


def _marked(rows: list[Row]) -> list[Row]:
    return [{**row, "wording": NEAR} for row in rows]
