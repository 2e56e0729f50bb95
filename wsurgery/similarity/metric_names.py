"""The similarities, by the names that are typed, and in the words that figures and tables use."""

MEAN_CCA = "mean_cca"
METRICS = {
    MEAN_CCA: "mean canonical correlation",
    "svcca": "SVCCA",
    "pwcca": "PWCCA",
    "r2_cca": "R² of CCA",
    "adjusted_r2_cca": "adjusted R² of CCA",
    "linear_cka": "linear CKA",
    "unbiased_cka": "unbiased CKA",
    "procrustes": "Procrustes similarity",
}
