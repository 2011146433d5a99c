"""Read files, and turn them into training rows.

records      `read` reads files into `records`; `read.answers`, answers to prompts
tokens       `encoding` and `chat` tokenise them, `store` keeps the tokens on disk
rows         `splits` chooses the held-out records, `blocks` packs the others into rows and deals them out
"""

from tsugiki.lazy import lazy_names

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "blocks": "Blocks Collator Segment StepBatches best_fit pack",
        "chat": "DEFAULT_TEMPLATE Rendering prompt_text read_template render",
        "duplicates": "SHINGLE fold near_duplicates signature signatures similarity",
        "encoding": "EncodedRecord document_end document_start encode encode_records",
        "read.answers": "read_answers",
        "read.aozora.index": "INDEX IndexEntry Person Query parse_role read_manifest select",
        "read.aozora.site": "Site SiteUnreachable",
        "read.aozora.text": "guess_kana has_annotations is_work plain_text read_work title_and_author",
        "read.aozora.works": "LooseFiles MirrorFolder Work open_source read_entries write_works",
        "read.character_encoding": "decode",
        "read.files": "content_key read_records record_kinds",
        "read.html": "html_text",
        "read.schemas": "parse_columns read_row",
        "records": "AssistantTurns Completion Conversation Document Message Reading Record target_text",
        "seen_texts": "Fingerprints find_learned fingerprints learned_by read_fingerprints write_fingerprints",
        "splits": "FieldCondition parse_held_out split_document split_records",
        "store": "RecordIndex TokenStore open_store",
    },
)
