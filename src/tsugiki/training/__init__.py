"""Training runs: their settings (`config`), the run itself (`run`), and its parts."""

from tsugiki.lazy import lazy_names

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "record": (
            "DataSummary finished FORMAT LossPoint new_record Parameters read_record RecordedBase RecordedConfig "
            "RunRecord Sample TrainingFigures"
        ),
        "model": "load_dtype make_trainable shard_model",
        "run": "train",
        "checkpoint": "load_training_state newest_checkpoint save_training_state",
        "choices": "Choices choices_for describe_choices EvaluationPlan plan_evaluations",
        "config": "CHAPTER DEFAULT_LORA RunConfig",
        "config_files": "load_config load_settings",
        "cost": "base_bytes loading_bytes measure Measured Need stored_bytes",
        "dtype_speed": "faster_dtype leaves_dtype_open seconds_of_dtypes",
        "evaluation.evaluate": "evaluate",
        "evaluation.interval": (
            "bits_interval change_interval effective_trials loss_interval paired_interval ratio_intervals Score "
            "t_percentile wilson_interval"
        ),
        "evaluation.pairs": "ScoredAnswers summarise_pairs",
        "evaluation.questions": "answer_questions Question read_questions",
        "evaluation.result": "Answers change_of_share",
        "evaluation_callback": "EvaluationCallback",
        "facts": "fact_notes Facts measured_facts",
        "gradients": "derived_seed Gradients",
        "learning_rate": "automatic_learning_rate weight_gain",
        "load_targets": "dtype_of evaluate_targets evaluation_targets loaded_targets TargetLoader",
        "loop": "Callback TrainingLoop",
        "loop_setup": "build_loop linear_share",
        "lora_plus": "loraplus",
        "memory_plan": "MemoryPlan plan_memory",
        "model_sample": "sample_model",
        "muon": "muon_and_adamw orthogonalized plain_orthogonalized split_parameters",
        "packing": "pack_data PackedDataset",
        "plan": "fitted plan_run",
        "processes": "check_agreement main_first on_main require_one_process start_accelerator",
        "progress": "RunProgress TimeLeft",
        "reading": "read_data",
        "resume": "changed_settings",
        "shapes": "find_shapes",
        "sharding": "check_optimizer is_sharded shard split_optimizer_state whole_optimizer_state whole_state",
        "split_data": "DatasetSplit",
        "stopping": "StopSignals",
        "text_loss": "StepLoss TextLoss",
        "threads": "run_in_threads",
        "windows": "split_windows Window WINDOW_CHARACTERS",
        "workflows.compare": "check_same_inputs compare comparison_rows needed_rank Point run_all sweep",
        "workflows.merge": "Merge merge_into_folder MergeReport",
        "workflows.pretrain": "build_model pretrain START",
        "workflows.preview": "Preview preview",
        "workflows.quickstart": "PROMPTS",
        "workflows.workflow_settings": "ComparisonConfig MAX_RUNS PretrainConfig SweepConfig",
    },
)
