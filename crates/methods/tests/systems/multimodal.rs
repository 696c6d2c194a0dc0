//! Multimodal contrastive training.

use candle_core::{Device, Tensor};
use consonance_methods::{
    ContrastTerm, InterModal, Multimodal, MultimodalConfig, Streams, TagTerm, tag_sets,
};
use consonance_testkit::data;

use crate::golden::{Golden, tensors};
use crate::support::{matrix, number};

const CPU: Device = Device::Cpu;

fn streams(x: &[Tensor]) -> Streams<'_> {
    Streams { image: &x[0], tag: &x[1], caption: &x[2], image_to_caption: &x[3], caption_to_image: &x[4] }
}

#[test]
fn losses_agree_with_pytorch() {
    for mut case in Golden::read("multimodal").cases("") {
        let (q, k) = (case.variables("q"), case.inputs("k"));
        let steps = case.take("steps").as_u64().unwrap() as usize;
        let length = case.take("length").as_u64().unwrap() as usize;
        let tags = case.input("tags");
        let (batch, dimension) = q[0].dims2().unwrap();
        let words = tags.dims()[2];
        let new = || Multimodal::new(case.config(), (length, batch, dimension), words, &CPU).unwrap();
        let (mut method, mut resumed) = (new(), new());
        let queries = tensors(&q);
        let keys = |step: usize| k.iter().map(|k| k.get(step).unwrap()).collect::<Vec<_>>();
        let mut last = None;
        for step in 0..steps {
            if step + 1 == steps {
                resumed.restore(&method.state().unwrap()).unwrap();
            }
            let (keys, tags) = (keys(step), tags.get(step).unwrap());
            last = Some(method.terms(&streams(&queries), &streams(&keys), &tags).unwrap());
        }
        let terms = last.unwrap();
        assert_eq!(method.filled(), (steps * batch).min(length + batch));
        for (name, value) in &terms.parts {
            case.check(&format!("part.{name}"), &[*value]);
        }
        assert_eq!(terms.parts.len(), 5);
        case.check_loss(&terms.total, &q);
        let (keys, tags) = (keys(steps - 1), tags.get(steps - 1).unwrap());
        let again = resumed.terms(&streams(&queries), &streams(&keys), &tags).unwrap();
        assert_eq!(number(&again.total), number(&terms.total), "{}: a resumed queue", case.name);
    }
}

#[test]
fn settings_are_the_sources_and_unknown_fields_are_refused() {
    let config = MultimodalConfig::default();
    assert_eq!((config.image.weight, config.image.temperature), (1.0, 0.07));
    assert_eq!((config.caption_to_image.weight, config.tag.overlap), (1e-4, 0));
    let json = serde_json::to_string(&config).unwrap();
    assert_eq!(serde_json::from_str::<MultimodalConfig>(&json).unwrap(), config);
    for wrong in [r#"{"images":{}}"#, r#"{"tag":{"epsilon":1}}"#, r#"{"inter_modal":{"hinge":{"m":1}}}"#] {
        assert!(serde_json::from_str::<MultimodalConfig>(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn image_only_computes_one_term() {
    let x: Vec<Tensor> = (0..5).map(|i| matrix(&data::unit(4, 3, i), 4, 3)).collect();
    let mut method = Multimodal::new(MultimodalConfig::image_only(), (8, 4, 3), 1, &CPU).unwrap();
    let tags = tag_sets(&[vec![0], vec![1], vec![2, 31], vec![3]], 32, &CPU).unwrap();
    let terms = method.terms(&streams(&x), &streams(&x), &tags).unwrap();
    assert_eq!(terms.parts.iter().map(|(name, _)| *name).collect::<Vec<_>>(), ["image"]);
}

#[test]
fn tags_become_bits() {
    let sets = tag_sets(&[vec![0, 31, 32], vec![63], vec![5, 5]], 64, &CPU).unwrap();
    assert_eq!(sets.to_vec2::<u32>().unwrap(), [[0x8000_0001, 1], [0, 0x8000_0000], [32, 0]]);
}

fn refused<T>(result: consonance_methods::Result<T>, parts: &[&str]) {
    let message = result.err().map(|e| e.to_string()).unwrap_or_default();
    assert!(parts.iter().all(|part| message.contains(part)), "{message:?} lacks one of {parts:?}");
}

#[test]
fn bad_input_is_refused() {
    let config = MultimodalConfig::default();
    let term = ContrastTerm::default();
    for (wrong, name) in [
        (MultimodalConfig { image: ContrastTerm { weight: -1.0, ..term }, ..config }, "image"),
        (MultimodalConfig { caption: ContrastTerm { temperature: 0.0, ..term }, ..config }, "caption"),
        (MultimodalConfig { tag: TagTerm { temperature: f64::NAN, ..config.tag }, ..config }, "tag"),
        (MultimodalConfig { inter_modal: InterModal::Hinge { margin: 0.0 }, ..config }, "inter_modal"),
    ] {
        refused(Multimodal::new(wrong, (8, 4, 3), 1, &CPU), &[name]);
    }
    refused(Multimodal::new(config, (0, 4, 3), 1, &CPU), &["length"]);
    refused(Multimodal::new(config, (8, 4, 3), 0, &CPU), &["words"]);
    refused(tag_sets(&[vec![1], vec![]], 4, &CPU), &["image 1", "at least one tag"]);
    refused(tag_sets(&[vec![4]], 4, &CPU), &["0..4"]);

    let mut method = Multimodal::new(config, (8, 4, 3), 1, &CPU).unwrap();
    let rows = |n: usize, d: usize| matrix(&data::unit(n, d, 1), n, d);
    let good: Vec<Tensor> = (0..5).map(|_| rows(4, 3)).collect();
    let tags = Tensor::new(&[[1u32], [2], [4], [1]], &CPU).unwrap();
    let with = |x: Tensor| [vec![x], good[1..].to_vec()].concat();
    refused(method.terms(&streams(&with(rows(5, 3))), &streams(&good), &tags), &["queries", "(5, 3)"]);
    refused(method.terms(&streams(&good), &streams(&with(rows(4, 2))), &tags), &["keys", "(4, 2)"]);
    let nan = with(matrix(&[f32::NAN; 12], 4, 3));
    refused(method.terms(&streams(&nan), &streams(&good), &tags), &["queries", "not finite"]);
    let empty = Tensor::new(&[[1u32], [2], [0], [1]], &CPU).unwrap();
    refused(method.terms(&streams(&good), &streams(&good), &empty), &["tags", "row 2"]);
    let wide = Tensor::new(&[[1u32, 0]; 4], &CPU).unwrap();
    refused(method.terms(&streams(&good), &streams(&good), &wide), &["tags", "[4, 1]"]);
    assert_eq!(method.filled(), 0, "a refused batch is not in the queue");
    refused(method.restore(&Default::default()), &["missing"]);
}
