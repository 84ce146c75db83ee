"""Model types of mlx-lm that have no row in the table of architectures, and why."""

_REASONS = {
    "all its MLPs are mixtures of experts, where no one projection holds a fact":
        "dbrx deepseek_v41 gpt_oss granitemoe mellum minimax mixtral muse_spark olmoe phimoe "
        "phixtral qwen2_moe",
    "it is a state-space or recurrent model: there is no attention whose keys and values a prefix "
    "could keep":
        "mamba mamba2 rwkv7",
    "it is a hybrid: some of its layers carry a recurrent or convolutional state, which the keys "
    "and values of a prefix do not hold":
        "baichuan_m1 bailing_hybrid bailing_moe_linear bailing_moe_v3 falcon_h1 gear "
        "granitemoehybrid jamba kimi_k3 kimi_linear lfm2 lfm2-vl lfm2_moe nemotron_h olmo_hybrid "
        "plamo2 prism_hadamard_qwen35 qwen3_5 qwen3_5_moe qwen3_next recurrent_gemma",
    "its attention selects tokens by an index with a cache of its own":
        "deepseek_v32 glm_moe_dsa minimax_m3_vl",
    "its projections are BitLinear: ternary weights, which a low-rank change does not fit":
        "bitnet",
    "its layers run twice, so one edit would act in two places":
        "iquestloopcoder",
    "its upper layers attend with the keys and values of a lower one":
        "afm7 hunyuan",
    "its state is several streams, of which a layer's output is only one":
        "gemma3n",
    "every layer adds the token's embedding again, so a layer's output is not the whole state":
        "talkie",
    "its attention sees chunks of the text, which a prefix does not follow":
        "llama4",
    "each of its layers holds two attentions, two MLPs and a mixture of experts":
        "longcat_flash longcat_flash_ngram",
    "some of its layers have no attention or no MLP":
        "nemotron-nas",
    "mlx-lm's own code for it fails on any text of more than one token":
        "olmo",
    "its block-sparse attention in mlx-lm lets tokens see later ones of their block":
        "phi3small",
}

NO_ROW = "the table in rome_mlx/models/architectures.py has no row for it"

#: stem of mlx-lm's model file -> one clause that says why it is not supported
REFUSED: dict[str, str] = {kind: reason for reason, kinds in _REASONS.items()
                           for kind in kinds.split()}
