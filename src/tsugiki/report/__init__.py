"""Pages, tables and plots of runs, comparisons, adapters and methods, and previews of training data."""

from tsugiki.lazy import lazy_names

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "adapter": "adapter_page bars decompose entry_line info_lines inspect_adapter kinds_table layers_table "
        "library_table tensors_table",
        "comparison": "sweep_sentence write_comparison",
        "evaluations": "evaluation_table",
        "methods": "describe_method methods_table",
        "plan": "plan_lines",
        "plots": "Series curves over_parameters over_ranks smoothed",
        "preview": "count_lines to_html to_terminal",
        "record_text": "hints run_notes speed_text",
        "run": "report_page sample_columns shown_samples write_report",
        "table": "Table wrap",
    },
)
