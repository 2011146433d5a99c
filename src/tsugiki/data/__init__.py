"""Read files, and turn them into training rows.

records      `sources`, `schemas` and `aozora` read files into `records`
tokens       `encoding` and `chat` tokenise them, `store` keeps the tokens on disk
rows         `splits` chooses the held-out records, `blocks` packs the others into rows
"""

from tsugiki.lazy import lazy_names

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "aozora.index": "INDEX IndexEntry Person read_manifest",
        "aozora.query": "Query parse_role select",
        "aozora.site": "Site SiteUnreachable",
        "aozora.text": "guess_kana has_annotations is_work plain_text read_work title_and_author",
        "aozora.works": "LooseFiles MirrorFolder Work check_target open_source read_entries write_works",
        "batches": "StepBatches",
        "blocks": "Blocks Segment best_fit pack",
        "character_encoding": "decode",
        "chat": "DEFAULT_TEMPLATE Rendering prompt_text read_template render",
        "collator": "Collator",
        "columns": "parse_columns",
        "duplicates": "SHINGLE fold near_duplicates signature signatures similarity",
        "encoding": "EncodedRecord document_end document_start encode encode_records",
        "epub": "chapter_text",
        "learned": "Fingerprints find_learned fingerprints learned_by read_fingerprints write_fingerprints",
        "reading": "Reading renamed",
        "records": "AssistantTurns Completion Conversation Document Message Record",
        "schemas": "read_row schema_of",
        "sources": "content_key read_records record_kinds",
        "splits": "FieldCondition parse_held_out split_document split_records",
        "store": "RecordIndex TokenStore open_store",
        "vocabulary": "END train_vocabulary",
    },
)
