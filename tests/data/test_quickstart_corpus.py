"""The quickstart corpus keeps one orthography: katakana, old characters and historical spelling, without a slip."""

import re
from pathlib import Path

import tsugiki

FOLDER = Path(tsugiki.__file__).parent / "assets" / "quickstart"
DOCUMENTS = sorted(FOLDER.glob("*.txt"))

# Present-day forms whose old form the jōyō kanji table gives in brackets and JIS X 0213 encodes. Left out are the
# characters that are also old words of their own: 弁, 予 (I), 余 (I), 欠 (yawn), 芸 (rue), 缶 (jar).
SHINJITAI = frozenset(
    "亜悪圧囲医為壱飲隠栄営衛駅円塩縁艶応欧殴桜奥横温穏仮価画会絵壊懐概拡殻覚学岳楽渇巻陥勧寛関歓観顔気帰亀偽戯犠"
    "旧拠挙虚峡挟狭郷暁区駆勲薫径茎恵掲渓経蛍軽継鶏撃研県倹剣険圏検献権顕験厳広効恒黄鉱号国黒砕済斎剤雑参桟蚕惨賛残"
    "糸歯児辞湿実写舎釈寿収従渋獣縦粛処緒叙将称渉焼証奨条状乗浄剰畳縄壌嬢譲醸触嘱真寝慎尽図粋酔穂随髄枢数瀬声斉静窃"
    "摂専浅戦践銭潜繊禅双壮争荘捜挿巣曽痩装総騒増蔵臓即属続堕対体帯滞台滝択沢担単胆団断弾遅痴虫昼鋳庁徴聴勅鎮逓鉄点"
    "転伝灯当党盗稲闘徳独読届弐悩脳覇拝廃売麦発髪抜晩蛮秘浜瓶払仏併並餅辺変歩舗宝豊褒翻毎万満麺黙弥訳薬与誉揺様謡来"
    "頼乱覧竜両猟緑涙塁礼励戻霊隷齢暦歴恋錬炉労郎楼録湾"
)

MODERN_KANA = {
    "small kana, hiragana or katakana": r"[ぁぃぅぇぉっゃゅょゎァィゥェォッャュョヮヵヶ]",
    "i for wi in iru": r"[てで]い(?:る|た[^だ]|て|な[いか]|ます|ました|れば)",
    "toiu": r"(?:[とう]|こう|そう)いう|という",
    "ou for au in volitional and conjecture": r"[だあなやかた]ろう|[おこごそとのぼもろ]うと[すし思言]|行こう|歸ろう",
    "you for yau": r"よう[にな]|ようだ|ようで",
    "sou and kou for sau and kau": r"そう(?:[でにだなしい]|、)|こう(?:[しい]|、)",
    "ha-row verbs": r"[言思買使笑會違失願習追貰拂縫誘洗拾匂救吸漂養扱狙合迷從從伺][わいうえ]",
    "ha-row lower verbs": r"[教答考數迎與變加添抱捕拵押終備堪仕][えわ]",
    "wa-row verbs": r"[植据飢][えへ]",
    "ya-row verbs": r"[聞消覺絶燃越冷殖凍][へゑ]|見へ[るたてなま]",
    "ji and zu for di and du": r"じつと|[一二三四五六七八九十枚しつ杯]ずつ|まず[、い]|[近氣]ずく|閉じ|恥ず|しずか|みず",
    "o for wo": r"おとこ|おんな|おかし[いくな]|お[りる]ます|[てで]お[りる]",
    "ha-row words": r"かわい|あわれ|なお[、す]|きよう|きのう|とおり",
}


HIRAGANA = {katakana: katakana - 0x60 for katakana in (*range(ord("ァ"), ord("ヶ") + 1), ord("ヽ"), ord("ヾ"))}


def running_text() -> str:
    """Return all texts with hiragana for katakana, in which the patterns above are written."""
    return "\n".join(path.read_text(encoding="utf-8") for path in DOCUMENTS).translate(HIRAGANA)


def test_documents_are_plain_prose_of_readable_length() -> None:
    assert 14 <= len(DOCUMENTS) <= 20
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        assert 800 <= len(re.sub(r"\s", "", text)) <= 1500
        assert re.fullmatch(r"[\u30a1-\u30fe\u4e00-\u9fff々、。「」\u3000\n]+\n", text)


def test_no_present_day_character_form_remains() -> None:
    assert sorted(SHINJITAI & set(running_text())) == []


def test_no_modern_kana_spelling_remains() -> None:
    text = running_text()
    for name, pattern in MODERN_KANA.items():
        slips = [text[max(0, m.start() - 8) : m.end() + 8] for m in re.finditer(pattern, text)]
        assert slips == [], name
