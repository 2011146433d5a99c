"""Training runs: their settings (`config`), the run itself (`run`), and its parts."""

from tsugiki.lazy import lazy_names

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "automatic": "automatic_learning_rate resolve total_steps with_values",
        "checkpoint": "load_training_state newest_checkpoint save_training_state",
        "config": "CHAPTER DEFAULT_LORA RunConfig",
        "config_files": "load_config",
        "evaluation.answers": "answer_questions",
        "evaluation.evaluate": "WINDOW_CHARACTERS Window evaluate split_windows",
        "evaluation.interval": (
            "Score bits_interval change_interval loss_interval paired_interval ratio_intervals t_percentile "
            "wilson_interval"
        ),
        "evaluation.questions": "Question read_questions",
        "evaluation.result": "Answers change_of_share",
        "evaluation.targets": "TargetLoader dtype_of evaluate_targets evaluation_targets loaded_targets",
        "evaluation_callback": "EvaluationCallback",
        "evaluation_plan": "EvaluationPlan evenly_spread plan_evaluations",
        "gradients": "Gradients row_seed",
        "loop": "Callback TrainingLoop",
        "model": "load_dtype prepare_model shard_model",
        "optimizers.loraplus": "loraplus",
        "optimizers.muon": "muon split_parameters",
        "packing": "PackedDataset pack_data",
        "planning.base_dtype": "faster_dtype leaves_dtype_open seconds_of_dtypes",
        "planning.fit": "MemoryPlan fitted memory_notes plan_memory",
        "planning.need": "Need",
        "planning.plan": "plan_run",
        "planning.sample": "Measured measure sample_model",
        "planning.weights": "base_bytes loading_bytes stored_bytes",
        "preparation": "DatasetSplit read_data",
        "prepare_loop": "choices linear_share",
        "processes": "check_agreement main_first on_main require_one_process start_accelerator",
        "progress": "RunProgress TimeLeft",
        "rate_probe": "limit",
        "record": (
            "DataSummary FORMAT LossPoint Parameters ProbePoint RecordedBase RecordedConfig RunRecord Sample "
            "TrainingFigures finished new_record read_record"
        ),
        "resume": "changed_settings",
        "run": "train",
        "sharding": "check_optimizer is_sharded shard split_optimizer_state whole_optimizer_state whole_state",
        "signals": "StopSignals",
        "threads": "run_in_threads",
        "workflows.compare": "compare comparison_rows",
        "workflows.compare_config": "ComparisonConfig MAX_RUNS SweepConfig load_comparison load_sweep",
        "workflows.earlier": "check_same_inputs",
        "workflows.merge": "Merge MergeReport merge_into_folder",
        "workflows.pretrain": "START build_model pretrain",
        "workflows.pretrain_config": "PretrainConfig load_pretrain_config",
        "workflows.preview": "Preview preview",
        "workflows.quickstart": "PROMPTS",
        "workflows.several": "run_all",
        "workflows.sweep": "Point needed_rank sweep",
    },
)
