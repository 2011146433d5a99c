"""Write pairs of Japanese sentences that end politely (chosen) and plainly (rejected), to learn from and to hold out.

    {"prompt": "庭の梅が", "chosen": "咲きます。", "rejected": "咲く。"}
    {"prompt": "庭の梅が", "chosen": "咲いています。", "rejected": "咲いているのである。"}

Each of 60 sentences is written in four forms: present, negative, past and progressive. Every second rejected ending is
the longer のである, so that the length of an answer does not tell which one was chosen. `polite.jsonl` has 192 pairs of
48 sentences, and `other.jsonl` 48 pairs of twelve others. `chosen.jsonl` and `chosen-other.jsonl` have the chosen
answers of both alone, as prompts with completions. The files are written to the working directory.
"""

import json
from collections.abc import Iterator
from pathlib import Path

SENTENCES = """
庭の梅が 咲き 咲く 咲かない 咲いた 咲いて
弟は手紙を 書き 書く 書かない 書いた 書いて
母が台所で魚を 焼き 焼く 焼かない 焼いた 焼いて
山の上に雪が 残り 残る 残らない 残った 残って
鐘の音が遠くから 聞こえ 聞こえる 聞こえない 聞こえた 聞こえて
猫が縁側で 眠り 眠る 眠らない 眠った 眠って
船は港を静かに 離れ 離れる 離れない 離れた 離れて
兄は毎朝川まで 走り 走る 走らない 走った 走って
祖父は縁側でお茶を 飲み 飲む 飲まない 飲んだ 飲んで
子供たちが校庭で 遊び 遊ぶ 遊ばない 遊んだ 遊んで
妹は窓のそばで本を 読み 読む 読まない 読んだ 読んで
父は町の工場で 働き 働く 働かない 働いた 働いて
鳥の群れが北の空へ 飛び 飛ぶ 飛ばない 飛んだ 飛んで
叔母は赤い帽子を かぶり かぶる かぶらない かぶった かぶって
隣の犬が一晩中 吠え 吠える 吠えない 吠えた 吠えて
郵便屋が坂道を 上り 上る 上らない 上った 上って
姉は古い着物を 縫い 縫う 縫わない 縫った 縫って
小舟が波に 揺れ 揺れる 揺れない 揺れた 揺れて
大工が新しい橋を 造り 造る 造らない 造った 造って
学生が駅前で友達を 待ち 待つ 待たない 待った 待って
赤ん坊が大きな声で 泣き 泣く 泣かない 泣いた 泣いて
農夫は畑に種を まき まく まかない まいた まいて
医者が隣村まで馬で 行き 行く 行かない 行った 行って
池の水が少しずつ 凍り 凍る 凍らない 凍った 凍って
職人は木の箱に蓋を 付け 付ける 付けない 付けた 付けて
少年が石を川へ 投げ 投げる 投げない 投げた 投げて
煙が屋根の上に 昇り 昇る 昇らない 昇った 昇って
旅人は宿で地図を 広げ 広げる 広げない 広げた 広げて
店の主人が客に傘を 貸し 貸す 貸さない 貸した 貸して
秋風に稲の穂が なびき なびく なびかない なびいた なびいて
先生は生徒の名前を 呼び 呼ぶ 呼ばない 呼んだ 呼んで
蛙が田んぼで盛んに 鳴き 鳴く 鳴かない 鳴いた 鳴いて
漁師が浜で網を 干し 干す 干さない 干した 干して
画家は窓からの景色を 描き 描く 描かない 描いた 描いて
駅長が汽車に旗を 振り 振る 振らない 振った 振って
従兄は東京の学校に 通い 通う 通わない 通った 通って
月が雲の間から 現れ 現れる 現れない 現れた 現れて
老人は杖をついて橋を 渡り 渡る 渡らない 渡った 渡って
女中が廊下の雨戸を 閉め 閉める 閉めない 閉めた 閉めて
蜂が花の蜜を 集め 集める 集めない 集めた 集めて
村の若者が太鼓を たたき たたく たたかない たたいた たたいて
料理人が大根を薄く 切り 切る 切らない 切った 切って
谷川の水が岩の間を 流れ 流れる 流れない 流れた 流れて
少女は髪に白い花を 挿し 挿す 挿さない 挿した 挿して
木こりが山で古い杉を 倒し 倒す 倒さない 倒した 倒して
新聞記者が事件を 調べ 調べる 調べない 調べた 調べて
時計の針が静かに 進み 進む 進まない 進んだ 進んで
友人は私の話を黙って 聞き 聞く 聞かない 聞いた 聞いて
夕日が海の向こうに 沈み 沈む 沈まない 沈んだ 沈んで
祖母は孫に昔話を 語り 語る 語らない 語った 語って
馬車が石の道を 通り 通る 通らない 通った 通って
桜の花びらが道に 散り 散る 散らない 散った 散って
娘は井戸で水を くみ くむ くまない くんだ くんで
兵隊が門の前に 並び 並ぶ 並ばない 並んだ 並んで
本屋の小僧が荷物を 運び 運ぶ 運ばない 運んだ 運んで
狐が林の奥へ 逃げ 逃げる 逃げない 逃げた 逃げて
伯父は毎晩日記を つけ つける つけない つけた つけて
蛍が川の上で 光り 光る 光らない 光った 光って
客が座敷で煙草を 吸い 吸う 吸わない 吸った 吸って
荷車の音が夜道に 響き 響く 響かない 響いた 響いて
"""
"""Beginning, and the polite stem, present, negative, past and continuative form of the verb."""
HELD_OUT = 12  # of the sentences, the last ones


def pairs() -> Iterator[dict[str, str]]:
    """Yield the pairs of each sentence, in four forms."""
    for number, line in enumerate(SENTENCES.split("\n")[1:-1]):
        prompt, stem, present, negative, past, continuative = line.split(" ")
        forms = {
            f"{stem}ます": present,
            f"{stem}ません": negative,
            f"{stem}ました": past,
            f"{continuative}います": f"{continuative}いる",
        }
        for form, (polite, plain) in enumerate(forms.items()):
            ending = "のである" if (number + form) % 2 else ""
            yield {"prompt": prompt, "chosen": f"{polite}。", "rejected": f"{plain}{ending}。"}


def write(name: str, rows: list[dict[str, str]]) -> None:
    """Write rows as JSON Lines to the working directory."""
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    Path(name).write_text(lines, encoding="utf-8")
    print(f"{name}: {len(rows)} rows")


if __name__ == "__main__":
    everything = list(pairs())
    for name, part in (("polite", everything[: -4 * HELD_OUT]), ("other", everything[-4 * HELD_OUT :])):
        write(f"{name}.jsonl", part)
        chosen = "chosen" if name == "polite" else f"chosen-{name}"
        write(f"{chosen}.jsonl", [{"prompt": row["prompt"], "completion": row["chosen"]} for row in part])
