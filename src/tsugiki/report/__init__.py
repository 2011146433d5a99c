"""Pages, tables and plots of runs, comparisons, adapters and methods, and previews of training data."""

from tsugiki.lazy import lazy_names

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "adapter": "adapter_page adapter_sections bars decompose entry_line info_lines inspect_adapter kinds_table "
        "layers_table library_table tensors_table",
        "comparison": "sweep_sentence write_comparison",
        "evaluations": "evaluation_table",
        "html": "whole_page",
        "methods": "describe_method methods_table",
        "plan": "plan_lines",
        "plots": "draw smoothed",
        "preview": "count_lines to_html to_terminal",
        "record_text": "hints run_notes speed_text",
        "run": "RESULTS report_page run_sections samples_of write_report",
        "sections": "Code Curves Facts Folded Lead Lines Note RankCurves Samples Section Sentence Series section "
        "selected to_json",
        "table": "Table wrap",
    },
)
