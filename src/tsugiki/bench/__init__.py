"""Measure speed and memory of Tsugiki and other tools, with the same workload in separate processes that take turns."""

from tsugiki.lazy import lazy_names

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "entries": "BenchmarkEntry DEFAULT_ENTRIES LIMIT_ENTRY PREFERENCE_ENTRIES TRAINING_ENTRIES load_function",
        "limit": "LAYOUTS Product Timings operands products",
        "models": "SHAPES build read_model_config",
        "race": "PeftSettings RaceResult ToolRun best_settings copy_new_adapters run_race",
        "results": "Results collect computer plot results_page results_table",
        "runner": "EntryFailed EntryProcess Measurement measure",
        "workload": "StepBarrier StopRequested Workload",
    },
)
