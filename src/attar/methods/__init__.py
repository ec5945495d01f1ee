"""The catalogue: name -> family, paper, year. Plain text, so that listing methods imports nothing heavy.

The module of a method is `attar.methods.<family>.<name>`. It defines `METHOD` (the class), `RECIPES`
(name -> recipe, the first is the default) and `views(recipe, image)`. Adding a method is one line here.
"""

from __future__ import annotations

from dataclasses import dataclass

from attar.errors import RecipeError, unknown_name

OWN = "own"  # the family of methods that are not in the catalogue


@dataclass(frozen=True)
class Entry:
    """One line of the catalogue."""

    name: str
    family: str
    paper: str
    year: int

    @property
    def module(self) -> str:
        if self.family == OWN:
            return self.name
        return f"attar.methods.{self.family}.{self.name}"


CATALOGUE: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        Entry("relative_position", "pretext", "Doersch et al. 2015, arXiv:1505.05192", 2015),
        Entry(
            "jigsaw",
            "pretext",
            "Noroozi and Favaro 2016, arXiv:1603.09246; Noroozi et al. 2018, arXiv:1805.00385",
            2016,
        ),
        Entry("exemplar", "pretext", "Dosovitskiy et al. 2014, arXiv:1406.6909", 2014),
        Entry("rotation", "pretext", "Gidaris et al. 2018, arXiv:1803.07728", 2018),
        Entry("colorization", "pretext", "Zhang et al. 2016, arXiv:1603.08511", 2016),
        Entry("inpainting", "pretext", "Pathak et al. 2016, arXiv:1604.07379", 2016),
        Entry("cpc", "contrastive", "van den Oord et al. 2018, arXiv:1807.03748", 2018),
        Entry("inst_disc", "contrastive", "Wu et al. 2018, arXiv:1805.01978", 2018),
        Entry("inva_spread", "contrastive", "Ye et al. 2019, arXiv:1904.03436", 2019),
        Entry("pirl", "contrastive", "Misra and van der Maaten 2019, arXiv:1912.01991", 2019),
        Entry("cmc", "contrastive", "Tian et al. 2020, arXiv:1906.05849", 2020),
        Entry("moco", "contrastive", "He et al. 2020, arXiv:1911.05722; Chen et al. 2020, arXiv:2003.04297", 2020),
        Entry("simclr", "contrastive", "Chen et al. 2020, arXiv:2002.05709", 2020),
        Entry("moco_v3", "contrastive", "Chen et al. 2021, arXiv:2104.02057", 2021),
        Entry("densecl", "contrastive", "Wang et al. 2021, arXiv:2011.09157", 2021),
        Entry("nnclr", "contrastive", "Dwibedi et al. 2021, arXiv:2104.14548", 2021),
        Entry("deep_cluster", "clustering", "Caron et al. 2020, arXiv:2006.09882", 2020),
        Entry("swav", "clustering", "Caron et al. 2020, arXiv:2006.09882; Goyal et al. 2021, arXiv:2103.01988", 2020),
        Entry("byol", "siamese", "Grill et al. 2020, arXiv:2006.07733", 2020),
        Entry("dino", "siamese", "Caron et al. 2021, arXiv:2104.14294", 2021),
        Entry("simsiam", "siamese", "Chen and He 2021, arXiv:2011.10566", 2021),
        Entry("barlow_twins", "siamese", "Zbontar et al. 2021, arXiv:2103.03230", 2021),
        Entry("vicreg", "siamese", "Bardes et al. 2022, arXiv:2105.04906", 2022),
        Entry("lejepa", "siamese", "Balestriero and LeCun 2025, arXiv:2511.08544", 2025),
        Entry("mae", "masked", "He et al. 2022, arXiv:2111.06377", 2022),
        Entry("simmim", "masked", "Xie et al. 2022, arXiv:2111.09886", 2022),
        Entry("ibot", "masked", "Zhou et al. 2022, arXiv:2111.07832", 2022),
        Entry("dinov2", "masked", "Oquab et al. 2023, arXiv:2304.07193", 2023),
        Entry("i_jepa", "masked", "Assran et al. 2023, arXiv:2301.08243", 2023),
        Entry("metric", "metric", "Schroff et al. 2015, arXiv:1503.03832", 2015),
        Entry("supervised", "supervised", "He et al. 2016, arXiv:1512.03385", 2016),
        Entry("cluster_transfer", "distill", "Noroozi et al. 2018, arXiv:1805.00385", 2018),
        Entry("born_again", "distill", "Furlanello et al. 2018, arXiv:1805.04770", 2018),
        Entry("snapshot", "distill", "Yang et al. 2019, arXiv:1812.00123", 2019),
        Entry("ddgsd", "distill", "Xu and Liu 2019, DOI 10.1609/aaai.v33i01.33015565", 2019),
        Entry("byot", "distill", "Zhang et al. 2019, arXiv:1905.08094", 2019),
        Entry("pskd", "distill", "Kim et al. 2021, arXiv:2006.12000", 2021),
        Entry("dogo", "distill", "Bhat et al. 2021, arXiv:2104.09866", 2021),
        Entry("compress", "distill", "Koohpayegani et al. 2020, arXiv:2010.14713", 2020),
        Entry("regression", "distill", "Navaneet et al. 2021, arXiv:2201.05131", 2021),
        Entry("foundation", "distill", "Beyer et al. 2021, arXiv:2106.05237; lightly-train 2025", 2021),
        Entry("s2bnn", "distill", "Shen et al. 2021, arXiv:2102.08946", 2021),
        Entry("finetune", "distill", "Chen et al. 2020, arXiv:2006.10029", 2020),
        Entry("simclr_v2", "distill", "Chen et al. 2020, arXiv:2006.10029", 2020),
        Entry("kd", "distill", "Hinton et al. 2015, arXiv:1503.02531", 2015),
        Entry("fitnet", "distill", "Romero et al. 2015, arXiv:1412.6550", 2015),
        Entry("attention_transfer", "distill", "Zagoruyko and Komodakis 2017, arXiv:1612.03928", 2017),
        Entry("relational_kd", "distill", "Park et al. 2019, arXiv:1904.05068", 2019),
        Entry("crd", "distill", "Tian et al. 2020, arXiv:1910.10699", 2020),
        Entry("sskd_teacher", "distill", "Xu et al. 2020, arXiv:2006.07114", 2020),
        Entry("sskd", "distill", "Xu et al. 2020, arXiv:2006.07114", 2020),
        Entry("seed", "distill", "Fang et al. 2021, arXiv:2101.04731", 2021),
    )
}


def entry(name: str) -> Entry:
    """The catalogue line of a method; an unknown name is answered with the nearest ones.

    A name with a dot is a module of your own, importable from here: `my_package.my_method`.
    """
    if name.startswith((".", "/")) or "/" in name:
        raise RecipeError(f"method {name!r} is a path; give a name, or a module as Python imports it: package.module.")
    if "." in name:
        return Entry(name, OWN, "", 0)
    if name not in CATALOGUE:
        raise RecipeError(unknown_name("method", name, CATALOGUE))
    return CATALOGUE[name]
