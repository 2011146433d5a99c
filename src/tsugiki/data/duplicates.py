"""Find near-duplicates: the same work in old and in modern orthography, or an example with small edits.

Texts are compared as sets of four-character sequences (shingles), after `fold` has removed differences of orthography,
width and punctuation. A `signature` is a one-permutation MinHash of the set: each shingle is hashed to a slot, and each
slot keeps its smallest hash. The share of equal slots estimates the Jaccard similarity of two sets (common shingles
divided by all shingles) to about ±0.045; for texts of one or two lines it is nearly exact. `near_duplicates` groups the
indices of similar signatures.
"""

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

SHINGLE = 4
SEQUENCE = 12
"""Characters of the longer sequences by which a text is found within another one (see `overlap`)."""
SLOTS = 126

# Similarity from which two texts are near-duplicates, for long and for short ones. The similarity of old and modern
# editions of a work is at least 0.44, that of works of the same series at most 0.21. Short texts reach 0.5 if they
# share a phrase such as …の首都はどこですか.
_MIN_SIMILARITY_LONG, _MIN_SIMILARITY_SHORT = 0.4, 0.6
# Slots per band. A pair is compared if one of 42 bands is equal: 94 % of pairs at similarity 0.4, 99.6 % at 0.5.
_BAND = 3
# Among many texts with an equal band, each is compared only with this number of neighbours, so that time stays linear.
# Pairs that are missed in one band are usually found in another one.
_NEIGHBOURS = 4
_PAIRS = 1 << 15  # pairs compared at a time, to limit memory
_ROWS, _KEYS = 1 << 14, 1 << 25  # signatures read at a time, and hashes of bands held at a time
_MULTIPLIERS = np.array([0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB], np.uint64)
EMPTY = 0xFFFFFFFF
"""The value of a slot without a hash."""
_MAX_MARKS = 30
_CHUNK = 1 << 20  # characters folded and hashed at a time, to limit memory

Signature = NDArray[np.uint32]


def signature(text: str) -> Signature:
    """Return the signature of a text, uint32 [126]. It is the same on every machine and takes linear time."""
    return np.asarray(signatures([text])[0])


def signatures(texts: Sequence[str]) -> NDArray[np.uint32]:
    """Return the signatures of several texts, uint32 [texts, 126]; faster for short texts than one by one."""
    smallest = np.full((len(texts), SLOTS), EMPTY, np.uint32)
    for codes, owners, pieces in _folded_pieces(texts):
        lengths = np.bincount(owners, minlength=len(pieces)) + SHINGLE - 1  # in shingles
        wide = np.zeros(lengths.sum() + SHINGLE - 1, np.uint32)  # the pieces, each with zeros before and after it
        wide[np.arange(len(codes)) + (owners + 1) * (SHINGLE - 1)] = codes
        hashes = _hash_windows(wide)
        slots = ((hashes >> np.uint64(32)) * np.uint64(SLOTS) >> np.uint64(32)).astype(np.intp)
        slots += np.repeat(pieces * SLOTS, lengths)
        np.minimum.at(smallest.reshape(-1), slots, hashes.astype(np.uint32))
    return smallest


def sequence_hashes(texts: Sequence[str]) -> Iterator[tuple[NDArray[np.uint64], NDArray[np.intp]]]:
    """Yield hashes of all sequences of 12 characters in folded texts, each with the index of its text.

    Sequences across the borders of the pieces of a long text are left out.
    """
    for codes, owners, pieces in _folded_pieces(texts):
        if len(codes) >= SEQUENCE:
            four = _hash_windows(codes)
            hashes = np.zeros(len(codes) - SEQUENCE + 1, np.uint64)
            for start in range(0, SEQUENCE, SHINGLE):
                hashes *= np.uint64(0x9E3779B97F4A7C15)
                hashes ^= four[start : start + len(hashes)]
            whole = owners[SEQUENCE - 1 :] == owners[: len(hashes)]
            yield hashes[whole], pieces[owners[: len(hashes)][whole]]


def _folded_pieces(
    texts: Sequence[str],
) -> Iterator[tuple[NDArray[np.uint32], NDArray[np.int32], NDArray[np.intp]]]:
    """Yield texts folded, in groups of about a million characters, so that a long text does not need much memory.

    Each group consists of pieces of the texts: what `fold` returns for them, and the index of the text of each piece.
    """
    pieces = [
        (index, text[start : start + _CHUNK])
        for index, text in enumerate(texts)
        for start in range(0, max(len(text), 1), _CHUNK)
    ]
    while pieces:
        ends = np.cumsum([len(piece) for _, piece in pieces])
        count = max(int(np.searchsorted(ends, _CHUNK, "right")), 1)
        codes, owners = fold([piece for _, piece in pieces[:count]])
        yield codes, owners, np.array([index for index, _ in pieces[:count]])
        del pieces[:count]


def near_duplicates(signatures: Sequence[Signature] | NDArray[np.uint32]) -> list[list[int]]:
    """Return groups of the indices of near-duplicates, two or more in each, sorted.

    Similarity is transitive here: if A is similar to B and B to C, all three are in one group. Only signatures with an
    equal band of slots are compared, and of many such signatures only neighbours, so time is nearly linear. The
    signatures can be memory-mapped: they are read from the beginning to the end, some bands at a time.
    """
    if not len(signatures):
        return []
    rows = np.asarray(signatures, np.uint32)
    group = np.arange(len(rows))
    (no_band,) = _band_keys(np.full((1, _BAND), EMPTY, np.uint32))[0]
    slots = _BAND * max(1, _KEYS // len(rows))
    for start in range(0, SLOTS, slots):
        for keys in _band_keys(rows[:, start : start + slots]):
            order = np.argsort(keys, kind="stable")
            band = keys[order]
            for distance in range(1, min(_NEIGHBOURS, len(rows) - 1) + 1):
                same = (band[distance:] == band[:-distance]) & (band[distance:] != no_band)
                if not same.any():
                    break
                a, b = order[:-distance][same], order[distance:][same]
                separate = group[a] != group[b]
                _join(group, rows, a[separate], b[separate])
    return grouped(group)


def grouped(labels: NDArray[np.intp]) -> list[list[int]]:
    """Return the indices of labels that are equal, two or more in each group, sorted. Labels are small numbers."""
    members = np.flatnonzero(np.bincount(labels)[labels] > 1)
    members = members[np.argsort(labels[members], kind="stable")]
    borders = np.flatnonzero(np.diff(labels[members])) + 1
    return [part.tolist() for part in np.split(members, borders) if len(part)]


def join_groups(count: int, groups: Iterable[Sequence[int]]) -> list[list[int]]:
    """Join groups that have a member in common; members are numbers below `count`."""
    labels = np.arange(count)
    _unite(labels, ((group[0], member) for group in groups for member in group[1:]))
    return grouped(labels)


def _band_keys(rows: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """Return a hash of each band of some slots of signatures, [bands, signatures]."""
    keys = np.empty((rows.shape[1] // _BAND, len(rows)), np.uint64)
    for first in range(0, len(rows), _ROWS):
        bands = rows[first : first + _ROWS].reshape(-1, len(keys), _BAND)
        keys[:, first : first + _ROWS] = (bands * _MULTIPLIERS).sum(axis=2).T
    return keys


def similarity(one: NDArray[np.uint32], other: NDArray[np.uint32]) -> NDArray[np.float64]:
    """Estimate the Jaccard similarity of signatures, over the last axis."""
    shared = (one == other) & (one != EMPTY)
    filled = (one != EMPTY) | (other != EMPTY)
    return np.asarray(shared.sum(axis=-1) / filled.sum(axis=-1))


def is_similar(similarity: NDArray[np.float64], signature: NDArray[np.uint32]) -> NDArray[np.bool_]:
    """Return whether similarities [...] make texts near-duplicates.

    The length of the longer text is estimated from its signature, uint32 [..., 126].
    """
    # The share of small hashes grows with the length of the text: 3 % at 20 characters, 18 % at 100, 86 % at 1000.
    length = (signature < 1 << 30).mean(axis=-1)
    threshold = _MIN_SIMILARITY_SHORT + (_MIN_SIMILARITY_LONG - _MIN_SIMILARITY_SHORT) * length
    return np.asarray(similarity >= threshold)


# Orthography ---------------------------------------------------------------------------------------------


def fold(texts: Sequence[str]) -> tuple[NDArray[np.uint32], NDArray[np.int32]]:
    """Return code points of texts without differences of orthography, width and punctuation, one after another.

    The result is used only for comparison. Letters, digits and symbols are lower case and of normal width. Old forms of
    kanji become new ones. All kana become hiragana, with つ for っ, ず for づ, わ for は, い for ひ and so on;
    そう for さう, and しう for しょう, しやう and せう. Repeated characters other than digits become one, since 々 and
    ゝ are removed. A text that would be empty after folding is not folded. The second array has the index of the text
    of each code point.
    """
    table, is_known, before_u, kinds = _tables()
    plain = [unicodedata.normalize("NFC", _with_few_marks(text)) for text in texts]
    codes = _code_points("".join(plain))
    for code in np.unique(codes[~is_known[codes]]).tolist():
        table[code], is_known[code] = _fold_character(chr(code)), True
    codes = table[codes]
    owners = np.repeat(np.arange(len(texts), dtype=np.int32), [len(text) for text in plain])
    codes, owners = codes[codes != 0], owners[codes != 0]
    same = owners[1:] == owners[:-1]
    kind = kinds[codes]
    kept = np.append(True, (kind[:-1] != _I_ROW) | (kind[1:] != _Y_ROW) | ~same)[: len(codes)]
    codes, owners = codes[kept], owners[kept]
    same = owners[1:] == owners[:-1]
    u_follows = np.append((codes[1:] == ord("う")) & same, False)[: len(codes)]
    codes = np.where(u_follows, before_u[codes], codes)
    digit = (codes >= ord("0")) & (codes <= ord("9"))  # 11 differs from 1
    different = np.append(True, (codes[1:] != codes[:-1]) | digit[1:] | ~same)[: len(codes)]
    codes, owners = codes[different], owners[different]
    empty = np.flatnonzero(np.bincount(owners, minlength=len(texts)) == 0)
    if not empty.size:
        return codes, owners
    unfolded = [texts[index] for index in empty.tolist()]
    codes = np.concatenate([codes, _code_points("".join(unfolded))])
    owners = np.concatenate([owners, np.repeat(empty, [len(text) for text in unfolded])]).astype(np.int32)
    order = np.argsort(owners, kind="stable")
    return codes[order], owners[order]


def _with_few_marks(text: str) -> str:
    """Keep only the first 30 of successive combining marks, because normalising many takes quadratic time.

    No language uses more (https://www.unicode.org/reports/tr15/#Stream_Safe_Text_Format).
    """
    if len(text) <= _MAX_MARKS:
        return text
    codes = _code_points(text)
    mark = _is_mark()[codes]
    if not mark.any():
        return text
    places = np.arange(len(codes))
    before = np.maximum.accumulate(np.where(mark, -1, places))  # the last character that is no mark
    kept = codes[~mark | (places - before <= _MAX_MARKS)]
    return kept.tobytes().decode("utf-32-le", "surrogatepass")


_OLD_KANA = dict(
    zip("はひふへほをゐゑぢづぁぃぅぇぉっゃゅょゎゔ", "わいうえおおいえじずあいうえおつやゆよわう", strict=True)
)
_BEFORE_U = dict(
    zip(
        "あかさたなまやらわがざだばぱえけせてねめれげぜでべぺ",
        "おこそとのもよろおごぞどぼぽいきしちにみりぎじじびぴ",
        strict=True,
    )
)
_I_ROW, _Y_ROW = 1, 2


@cache
def _tables() -> tuple[NDArray[np.uint32], NDArray[np.bool_], NDArray[np.uint32], NDArray[np.uint8]]:
    """Return four tables by code point: its folded form (0: removed), whether this has been computed, its form before
    う, and its kind of kana.
    """
    table = np.arange(0x110000, dtype=np.uint32)
    is_known = table >= 0x10000  # these are not changed by folding
    before_u = np.arange(0x110000, dtype=np.uint32)
    for kana, changed in _BEFORE_U.items():
        before_u[ord(kana)] = ord(changed)
    kinds = np.zeros(0x110000, np.uint8)
    kinds[[ord(kana) for kana in "いきしちにみりぎじびぴ"]] = _I_ROW
    kinds[[ord(kana) for kana in "やゆよ"]] = _Y_ROW
    return table, is_known, before_u, kinds


@cache
def _is_mark() -> NDArray[np.bool_]:
    """Return a table by code point: whether it is a combining mark, which may be reordered by normalisation."""
    table = np.zeros(0x110000, np.bool_)
    marks = range(0x300, 0x20000)  # there are none outside
    table[marks.start : marks.stop] = [unicodedata.combining(chr(code)) > 0 for code in marks]
    return table


def _fold_character(character: str) -> int:
    plain = unicodedata.normalize("NFKC", character).casefold()
    if len(plain) != 1:  # characters such as ㍿ are kept
        plain = character
    category = unicodedata.category(plain)
    if category[0] in "PZCM" or category == "Lm" or plain == "〓":  # Lm: ー 々 ゝ
        return 0
    if "ァ" <= plain <= "ヴ":
        plain = chr(ord(plain) - ord("ァ") + ord("ぁ"))
    return ord(_OLD_KANA.get(plain) or NEW_FORMS.get(plain) or plain)


# Hashing and grouping ------------------------------------------------------------------------------------


def _code_points(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


def _hash_windows(codes: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """Return 64-bit hashes of all sequences of `SHINGLE` code points."""
    wide = codes.astype(np.uint64)
    count = wide.size - SHINGLE + 1
    hashes = np.zeros(count, np.uint64)
    for offset in range(SHINGLE):
        hashes += wide[offset : offset + count]
        hashes *= np.uint64(0x9E3779B97F4A7C15)
        hashes ^= hashes >> np.uint64(29)
    hashes *= np.uint64(0xBF58476D1CE4E5B9)
    return hashes ^ (hashes >> np.uint64(32))


def _join(group: NDArray[np.intp], rows: NDArray[np.uint32], a: NDArray[np.intp], b: NDArray[np.intp]) -> None:
    """Join, in place, the groups of the similar pairs (a[i], b[i]); a group is identified by its first index."""
    for start in range(0, len(a), _PAIRS):
        pairs_a, pairs_b = a[start : start + _PAIRS], b[start : start + _PAIRS]
        one, other = rows[pairs_a], rows[pairs_b]
        similar = is_similar(similarity(one, other), np.minimum(one, other))
        _unite(group, zip(pairs_a[similar].tolist(), pairs_b[similar].tolist(), strict=True))


def _unite(group: NDArray[np.intp], pairs: Iterable[tuple[int, int]]) -> None:
    """Join, in place, the groups of these pairs; afterwards each member has the first index of its group."""
    for pair in pairs:
        first, second = sorted(_root(group, member) for member in pair)
        group[second] = first
    while (group != group[group]).any():
        group[:] = group[group]


def _root(group: NDArray[np.intp], index: int) -> int:
    while group[index] != index:
        group[index] = group[group[index]]
        index = int(group[index])
    return index


# Old forms of kanji (旧字体), each before the new form (新字体) that replaced it. They are those of the table of
# kanji in common use (常用漢字表, 2010) and others that were common in print. Compatibility characters of Unicode
# (神 U+FA19) are not included, because NFKC normalisation converts them.
_OLD_AND_NEW = (
    "乘乗亂乱亞亜佛仏來来倂併假仮傳伝僞偽價価儉倹兒児兩両剩剰劍剣劑剤勞労勳勲勵励勸勧區区卷巻卽即參参單単嚴厳"
    "囑嘱圈圏國国圍囲圓円圖図團団增増墮堕壓圧壘塁壞壊壤壌壯壮壹壱壽寿奧奥奬奨孃嬢學学寢寝實実寫写寬寛寶宝將将"
    "專専對対屆届屬属峽峡嶽岳巢巣帶帯廢廃廣広廳庁彈弾彌弥徑径從従徵徴德徳恆恒惠恵惡悪惱悩愼慎慘惨應応懷懐戀恋"
    "戰戦戲戯戾戻拂払拔抜拜拝挾挟插挿揭掲搖揺搜捜擇択擊撃擔担據拠擧挙擴拡攝摂收収效効敍叙敕勅數数斷断晚晩晝昼"
    "曆暦曉暁曾曽會会條条棧桟榮栄槪概樂楽樓楼樞枢樣様橫横檢検櫻桜權権歐欧歡歓步歩歷歴歸帰殘残殼殻毆殴每毎氣気"
    "涉渉淚涙淨浄淺浅渴渇溪渓溫温滯滞滿満潛潜澁渋澤沢濕湿濟済濱浜瀧滝瀨瀬灣湾燈灯燒焼營営爐炉爭争爲為犧犠狀状"
    "狹狭獨独獵猟獸獣獻献甁瓶畫画當当疊畳瘦痩癡痴發発盜盗盡尽眞真硏研碎砕祕秘禪禅禮礼稱称稻稲穗穂穩穏竊窃竝並"
    "粹粋絲糸經経綠緑緖緒緣縁縣県縱縦總総繩縄繪絵繼継續続纖繊缺欠罐缶聲声聽聴肅粛腦脳膽胆臟臓臺台與与舊旧艷艶"
    "莊荘莖茎萬万薰薫藏蔵藝芸藥薬處処虛虚號号螢蛍蟲虫蠶蚕蠻蛮衞衛裝装襃褒覺覚覽覧觀観觸触謠謡證証譯訳譽誉讀読"
    "變変讓譲豐豊豫予貳弐賣売賴頼贊賛踐践輕軽轉転辭辞遞逓遲遅邊辺郞郎鄕郷醉酔醫医釀醸釋釈錄録錢銭鍊錬鎭鎮鐵鉄"
    "鑄鋳鑛鉱關関陷陥隨随險険隱隠雙双雜雑霸覇靈霊靜静顯顕飜翻餘余騷騒驅駆驗験驛駅髓髄體体髮髪鬭闘鷄鶏鹽塩麥麦"
    "麵麺黃黄黑黒默黙點点黨党齊斉齋斎齒歯齡齢龍竜飮飲銳鋭悅悦閱閲顏顔龜亀敎教戶戸吳呉娛娯吿告歲歳產産舍舎尙尚"
    "靑青淸清稅税說説絕絶脫脱內内餠餅舖舗沒没隸隷巖巌彥彦瑤瑶禰祢禱祷祿禄簞箪聰聡遙遥啞唖噓嘘鷗鴎軀躯攪撹嚙噛"
    "繡繍蔣蒋醬醤搔掻屛屏幷并蠟蝋焰焔讚讃顚顛潑溌輛輌繫繋瀆涜驒騨摑掴辨弁辯弁瓣弁冩写囘回册冊揷挿鬪闘姊姉埓埒"
    "鄰隣甞嘗徃往壺壷濤涛灌潅凉涼亙亘伜倅咒呪欝鬱駈駆嶋島羣群峯峰恠怪裡裏"
)


NEW_FORMS = dict(zip(_OLD_AND_NEW[::2], _OLD_AND_NEW[1::2], strict=True))
"""Old form of a kanji -> its new form."""
