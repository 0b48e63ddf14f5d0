import pytest
import torch

from ovd_d2.modeling import CLIPClassifier
from ovd_d2.vocabulary import Vocabulary
from tests.tiny import DIM, random_units, tiny_vocabulary


def make_classifier(num_classes=4, temperature=0.01, **options):
    torch.manual_seed(0)
    return CLIPClassifier(
        embedding_dim=DIM, num_classes=num_classes, temperature=temperature, **options
    )


def test_logits_are_cosine_over_temperature_with_background_last():
    classifier = make_classifier(temperature=0.5)
    vocabulary = tiny_vocabulary()
    classifier.set_vocabulary(vocabulary)
    region = vocabulary.embeddings[1:2]
    logits = classifier(region)
    background = torch.nn.functional.normalize(classifier.background, dim=0)
    assert logits.shape == (1, 5)
    assert logits[0, 1].item() == pytest.approx(2.0, abs=1e-5)  # cosine 1 over 0.5
    assert logits[0, 4].item() == pytest.approx((region[0] @ background).item() / 0.5, abs=1e-5)


def test_background_counts_by_direction_alone():
    classifier = make_classifier()
    classifier.set_vocabulary(tiny_vocabulary())
    region = random_units(3, seed=5)
    before = classifier(region)
    with torch.no_grad():
        classifier.background.mul_(100.0)
    torch.testing.assert_close(classifier(region), before)


def test_text_embeddings_are_no_parameters_and_stay_after_a_step():
    classifier = make_classifier()
    vocabulary = tiny_vocabulary()
    classifier.set_vocabulary(vocabulary)
    assert [name for name, _ in classifier.named_parameters()] == ["background"]
    optimizer = torch.optim.SGD(classifier.parameters(), lr=1.0, weight_decay=0.1)
    before = classifier.background.clone()
    torch.nn.functional.cross_entropy(classifier(random_units(2)), torch.tensor([0, 4])).backward()
    optimizer.step()
    assert torch.equal(classifier.text_embeddings, vocabulary.embeddings)
    assert not torch.equal(classifier.background, before)


def test_logits_are_exact_under_autocast():
    classifier = make_classifier()
    classifier.set_vocabulary(tiny_vocabulary())
    region = random_units(5, seed=3)
    exact = classifier(region)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(classifier(region), exact)


def test_another_temperature_at_test_time():
    classifier = make_classifier(temperature=0.5, test_temperature=0.25)
    classifier.set_vocabulary(tiny_vocabulary())
    region = random_units(2)
    torch.testing.assert_close(classifier.eval()(region), 2 * classifier.train()(region))
    with pytest.raises(ValueError, match="0.5 and -1"):
        make_classifier(temperature=0.5, test_temperature=-1)


def vocabulary_with_background():
    plain = tiny_vocabulary()
    background = random_units(1, seed=9)[0]
    return Vocabulary(plain.names, plain.embeddings, plain.novel, background=background)


def test_background_in_words_is_the_vocabularys_and_frozen():
    classifier = make_classifier(temperature=1.0, background="text")
    vocabulary = vocabulary_with_background()
    classifier.set_vocabulary(vocabulary)
    assert list(classifier.parameters()) == []
    region = random_units(2)
    torch.testing.assert_close(classifier(region)[:, 4], region @ vocabulary.background)
    other = make_classifier(temperature=1.0, background="text")
    other.load_state_dict(classifier.state_dict())
    torch.testing.assert_close(other(region), classifier(region))


def test_a_learned_background_takes_no_notice_of_the_vocabularys():
    classifier = make_classifier()
    before = classifier.background.clone()
    classifier.set_vocabulary(vocabulary_with_background())
    assert torch.equal(classifier.background, before)


def test_background_in_words_needs_one_in_the_vocabulary():
    with pytest.raises(ValueError, match="tools/build_vocabulary.py"):
        make_classifier(background="text").set_vocabulary(tiny_vocabulary())
    with pytest.raises(ValueError, match="'noise'"):
        make_classifier(background="noise")


def test_a_state_dict_brings_its_vocabulary_to_a_classifier_without():
    first, second = make_classifier(), make_classifier(num_classes=4)
    first.set_vocabulary(tiny_vocabulary(["dog", "cow"], seed=3))
    second.load_state_dict(first.state_dict())
    assert second.vocabulary.names == ["dog", "cow"]
    assert second.num_classes == 2
    assert second.novel.tolist() == [True, False]
    torch.testing.assert_close(second(random_units(3)), first(random_units(3)))


def test_a_vocabulary_that_was_given_stays():
    first = make_classifier()
    first.set_vocabulary(tiny_vocabulary(["dog", "cow"], seed=3))
    given = make_classifier(vocabulary=tiny_vocabulary())
    held = given.state_dict()["vocabulary"]
    given.load_state_dict(first.state_dict())
    assert given.vocabulary.names == tiny_vocabulary().names
    assert Vocabulary.from_bytes(held.numpy().tobytes()).names == tiny_vocabulary().names


def test_one_name_is_enough():
    classifier = make_classifier()
    classifier.set_vocabulary(tiny_vocabulary(["dog"]))
    assert classifier(random_units(2)).shape == (2, 2)
    assert classifier(random_units(0)).shape == (0, 2)


def test_without_a_vocabulary_it_says_so():
    with pytest.raises(RuntimeError, match="set_vocabulary"):
        make_classifier()(random_units(1))
    fresh = make_classifier()
    fresh.load_state_dict(make_classifier().state_dict())  # zeros are no vocabulary either
    with pytest.raises(RuntimeError, match="set_vocabulary"):
        fresh(random_units(1))


def test_another_width_is_refused():
    classifier = CLIPClassifier(embedding_dim=16, num_classes=4, temperature=0.01)
    with pytest.raises(ValueError, match="8 wide.*16"):
        classifier.set_vocabulary(tiny_vocabulary())


def test_temperature_must_be_positive():
    with pytest.raises(ValueError, match="0"):
        make_classifier(temperature=0.0)


def test_vocabulary_follows_the_module_to_another_type():
    classifier = make_classifier().to(torch.float64)
    classifier.set_vocabulary(tiny_vocabulary())
    assert classifier.text_embeddings.dtype == torch.float64
    assert classifier(random_units(2).double()).dtype == torch.float64


def test_synonyms_train_and_travel_with_the_state_dict():
    """A category is as similar as its best word, in training, in a call and after loading."""
    names, words = ["sofa", "cat"], random_units(3, seed=3)
    vocabulary = Vocabulary(
        names, words[:2], synonyms=[["couch"], []], synonym_embeddings=words[2:]
    )
    classifier = make_classifier(num_classes=2, temperature=0.5)
    classifier.set_vocabulary(vocabulary)
    regions = random_units(5, seed=4).requires_grad_()
    logits = classifier(regions)
    cosines = regions @ words.T
    assert logits.shape == (5, 3) and classifier.num_classes == 2
    expected = torch.stack([cosines[:, [0, 2]].amax(dim=1), cosines[:, 1]], dim=1) / 0.5
    torch.testing.assert_close(logits[:, :2], expected)
    logits[:, 0].sum().backward()
    assert regions.grad.abs().sum() > 0
    loaded = make_classifier(num_classes=7, temperature=0.5)
    loaded.load_state_dict(classifier.state_dict())
    assert loaded.vocabulary.synonyms == [["couch"], []]
    torch.testing.assert_close(loaded(regions), logits)
    torch.testing.assert_close(loaded(regions, classifier.words_of(vocabulary)), logits)
