"""Training runs: their settings (`config`), the run itself (`run`), and its parts."""

from tsugiki.lazy import lazy_names

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "loop_setup": "build_loop linear_share",
        "checkpoint": "load_training_state newest_checkpoint save_training_state",
        "choices": "Choices EvaluationPlan choose describe_choices evenly_spread plan_evaluations",
        "config": "CHAPTER DEFAULT_LORA RunConfig",
        "config_files": "load_config",
        "evaluation.evaluate": "WINDOW_CHARACTERS Window evaluate split_windows",
        "evaluation.interval": (
            "Score bits_interval change_interval loss_interval paired_interval ratio_intervals t_percentile "
            "wilson_interval"
        ),
        "evaluation.questions": "Question answer_questions read_questions",
        "evaluation.result": "Answers change_of_share",
        "evaluation_callback": "EvaluationCallback",
        "load_targets": "TargetLoader dtype_of evaluate_targets evaluation_targets loaded_targets",
        "facts": "Facts fact_notes measured_facts",
        "gradients": "Gradients row_seed",
        "learning_rate": "automatic_learning_rate limit",
        "loop": "Callback TrainingLoop",
        "lora_plus": "loraplus",
        "model": "load_dtype make_trainable shard_model",
        "optimizers": "muon split_parameters",
        "packing": "PackedDataset pack_data",
        "planning.cost": "Measured Need faster_dtype leaves_dtype_open measure seconds_of_dtypes",
        "planning.plan": "MemoryPlan fitted plan_memory plan_run",
        "planning.sample": "sample_model",
        "planning.shapes": "base_bytes find_shapes loading_bytes stored_bytes",
        "processes": "check_agreement main_first on_main require_one_process start_accelerator",
        "progress": "RunProgress TimeLeft",
        "record": (
            "DataSummary FORMAT LossPoint Parameters ProbePoint RecordedBase RecordedConfig RunRecord Sample "
            "TrainingFigures finished new_record read_record"
        ),
        "resume": "changed_settings",
        "run": "train",
        "sharding": "check_optimizer is_sharded shard split_optimizer_state whole_optimizer_state whole_state",
        "split_data": "DatasetSplit read_data",
        "stopping": "StopSignals",
        "threads": "run_in_threads",
        "workflows.compare": "Point compare comparison_rows needed_rank sweep",
        "workflows.merge": "Merge MergeReport merge_into_folder",
        "workflows.pretrain": "START build_model pretrain",
        "workflows.preview": "Preview preview",
        "workflows.quickstart": "PROMPTS",
        "workflows.runs_on_one_base": "check_same_inputs run_all",
        "workflows.workflow_settings": (
            "ComparisonConfig MAX_RUNS PretrainConfig SweepConfig load_comparison load_pretrain_config load_sweep"
        ),
    },
)
