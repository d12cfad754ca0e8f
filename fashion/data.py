CLASS_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


SPLIT_SEED = 2017  # the data set's year; fixed, so that every run validates on the same images


@dataclass(frozen=True)
class Split:
    """One of train, validation and test, in an order in which every prefix is class-balanced.

    A subset is a prefix, so smaller subsets are nested in larger ones, and what is computed for
    each image of a subset is of use to every other subset.
    """

    all_images: np.ndarray  # uint8 (M, 28, 28)
    all_labels: np.ndarray  # int32 (M,)
    all_positions: np.ndarray  # int64 (M,): the image's number in the data set's file, from 0
    size: int  # N <= M: how many of them are used

    @property
    def images(self) -> np.ndarray:
        """The images in use, uint8 (N, 28, 28)."""
        return self.all_images[: self.size]

    @property
    def labels(self) -> np.ndarray:
        """Their labels, int32 (N,), from 0 to 9."""
        return self.all_labels[: self.size]

    @property
    def positions(self) -> np.ndarray:
        """Their numbers in the data set's file, by which anybody can find them."""
        return self.all_positions[: self.size]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all M images, in their order."""
        return hashlib.sha256(self.all_images).hexdigest()


@dataclass(frozen=True)
class FashionMNIST:
    """The three splits, and what they were read from."""

    train: Split
    validation: Split
    test: Split
    source: str
    sha256: dict[str, str]  # of each file, decompressed

    @property
    def splits(self) -> dict[str, Split]:
        """The three by name, in the order train, validation, test."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    def record(self) -> dict[str, object]:
        """What a run notes about its data."""
        sizes = {name: split.size for name, split in self.splits.items()}
        return {"source": self.source, **sizes, "sha256": self.sha256}


def _class_balanced_order(labels: np.ndarray) -> np.ndarray:
    """A shuffled order that takes one image of each class in turn, as long as there are any."""
    shuffled = np.random.default_rng(SPLIT_SEED).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    turn = np.concatenate([np.arange(count) for count in np.bincount(labels)])
    return by_class[np.argsort(turn, kind="stable")]
