//! Mutual contrastive learning.

use candle_core::{Device, Tensor, Var};
use consonance_methods::{
    IndexLists, LogitDistillation, MomentumEncoder, MutualBank, MutualBatch, MutualContrastConfig,
    MutualQueue, Terms, logit_distillation,
};
use consonance_testkit::data;

use crate::golden::{Case, Golden, flat, tensors};
use crate::support::{matrix, number, vector};

const CPU: Device = Device::Cpu;

fn check_parts(case: &Case<'_>, terms: &Terms) {
    let names = ["vcl", "icl", "soft_vcl", "soft_icl"];
    assert_eq!(terms.parts.iter().map(|(name, _)| *name).collect::<Vec<_>>(), names);
    for (name, value) in &terms.parts {
        case.check(&format!("part.{name}"), &[*value]);
    }
}

#[test]
fn batches_agree_with_pytorch() {
    for case in Golden::read("mutual").cases("batch/") {
        let v = case.variables("v");
        let method = MutualBatch::new(case.config(), v.len()).unwrap();
        let terms = method.terms(&tensors(&v), &case.input("labels")).unwrap();
        check_parts(&case, &terms);
        case.check_loss(&terms.total, &v);
    }
}

#[test]
fn banks_agree_with_pytorch() {
    for case in Golden::read("mutual").cases("bank/") {
        let (v, banks) = (case.variables("v"), case.inputs("bank"));
        let shape = banks[0].dims2().unwrap();
        let mut method = MutualBank::new(case.config(), v.len(), shape, 1, 0.5, 1, &CPU).unwrap();
        let named = |(a, bank): (usize, &Tensor)| (format!("bank.{a}"), bank.clone());
        method.restore(&banks.iter().enumerate().map(named).collect()).unwrap();
        let lists = case.input("lists");
        let terms = method.terms(&tensors(&v), &lists).unwrap();
        check_parts(&case, &terms);
        case.check_loss(&terms.total, &v);
        let own = lists.narrow(1, 0, 1).unwrap().squeeze(1).unwrap();
        method.update(&tensors(&v), &own).unwrap();
        for (a, bank) in method.banks().iter().enumerate() {
            case.check(&format!("bank.{a}"), &flat(bank));
        }
    }
}

#[test]
fn queues_agree_with_pytorch() {
    for mut case in Golden::read("mutual").cases("queue/") {
        let (q, k) = (case.variables("q"), case.inputs("k"));
        let steps = case.take("steps").as_u64().unwrap() as usize;
        let length = case.take("length").as_u64().unwrap() as usize;
        let (batch, dimension) = q[0].dims2().unwrap();
        let new = || MutualQueue::new(case.config(), q.len(), (length, batch, dimension), &CPU).unwrap();
        let (mut method, mut resumed) = (new(), new());
        let keys = |step: usize| k.iter().map(|k| k.get(step).unwrap()).collect::<Vec<_>>();
        let mut last = None;
        for step in 0..steps {
            if step + 1 == steps {
                resumed.restore(&method.state().unwrap()).unwrap();
            }
            last = Some(method.terms(&tensors(&q), &keys(step)).unwrap());
        }
        let terms = last.unwrap();
        assert_eq!(method.filled(), (steps * batch).min(length + batch));
        check_parts(&case, &terms);
        case.check_loss(&terms.total, &q);
        let again = resumed.terms(&tensors(&q), &keys(steps - 1)).unwrap();
        assert_eq!(number(&again.total), number(&terms.total), "a resumed queue goes on with the same bits");
    }
}

#[test]
fn logits_agree_with_pytorch() {
    for case in Golden::read("mutual").cases("logits/") {
        let l = case.variables("l");
        let config: LogitDistillation = case.config();
        let terms = logit_distillation(&tensors(&l), &config).unwrap();
        case.check_loss(&terms.total, &l);
    }
}

#[test]
fn settings_are_the_published_ones_and_unknown_fields_are_refused() {
    let json = |config| serde_json::to_string(&config).unwrap();
    let batch = r#"{"vcl":0.1,"icl":0.1,"soft_vcl":1.0,"soft_icl":1.0,"temperature":0.1,"softening":3.0}"#;
    assert_eq!(json(MutualContrastConfig::default()), batch);
    assert_eq!(json(MutualContrastConfig::memory_bank()), batch.replace(r#"re":0.1"#, r#"re":0.07"#));
    let queue = MutualContrastConfig::momentum_queue();
    assert_eq!((queue.vcl, queue.icl, queue.soft_vcl, queue.temperature), (1.0, 1.0, 1.0, 0.07));
    assert!(serde_json::from_str::<MutualContrastConfig>(r#"{"vlc":1}"#).is_err());
    assert!(serde_json::from_str::<LogitDistillation>(r#"{"wieght":1}"#).is_err());
    let short: MutualContrastConfig = serde_json::from_str(r#"{"icl":2}"#).unwrap();
    assert_eq!(short, MutualContrastConfig { icl: 2.0, ..MutualContrastConfig::default() });
}

#[test]
fn terms_of_weight_zero_are_not_computed() {
    let v: Vec<Var> =
        (0..2).map(|i| Var::from_tensor(&matrix(&data::unit(4, 3, i), 4, 3)).unwrap()).collect();
    let config = MutualContrastConfig { soft_vcl: 0.0, soft_icl: 0.0, ..Default::default() };
    let terms = MutualBatch::new(config, 2).unwrap().terms(&tensors(&v), &vector(&[0, 0, 1, 1])).unwrap();
    assert_eq!(terms.parts.iter().map(|(name, _)| *name).collect::<Vec<_>>(), ["vcl", "icl"]);
}

#[test]
fn lists_hold_the_row_its_class_and_other_classes_evenly() {
    let labels: Vec<u32> = (0..60).map(|i| [5, 9, 2][(i * 7 % 3) as usize]).chain([77]).collect();
    let lists = IndexLists::new(&vector(&labels), 2, 30, 4).unwrap();
    let rows: Vec<u32> = (0..61).collect();
    let (mut positives, mut negatives) = (vec![0u32; 61], vec![0u32; 61]);
    for step in 0..200 {
        let drawn = lists.draw(&vector(&rows), step).unwrap().to_vec2::<u32>().unwrap();
        for (row, list) in rows.iter().zip(&drawn) {
            let class = labels[*row as usize];
            assert_eq!((list[0], list.len()), (*row, lists.columns()));
            if class == 77 {
                assert_eq!(list[1..3], [u32::MAX; 2], "nobody else is of its class");
            } else {
                assert!(list[1] != list[2] && list[1..3].iter().all(|p| p != row));
                assert!(list[1..3].iter().all(|p| labels[*p as usize] == class));
                list[1..3].iter().for_each(|p| positives[*p as usize] += 1);
            }
            assert!(list[3..].iter().all(|n| labels[*n as usize] != class));
            list[3..].iter().for_each(|n| negatives[*n as usize] += 1);
        }
        // What an anchor draws does not depend on the batch.
        let alone = lists.draw(&vector(&[17]), step).unwrap().to_vec2::<u32>().unwrap();
        assert_eq!(alone[0], drawn[17]);
    }
    assert_ne!(
        lists.draw(&vector(&[3]), 0).unwrap().to_vec2::<u32>().unwrap(),
        lists.draw(&vector(&[3]), 1).unwrap().to_vec2::<u32>().unwrap()
    );
    // 20 rows a class, each listed 2 of 19 times by 19 others at 200 steps: 400, with a deviation below 20 (each of 3,800
    // draws by chance 2/19); the negatives of a row come from 40 or 41 anchors, 6,000 times each by 1/41 or 1/60 at most.
    assert!(positives[..60].iter().all(|n| n.abs_diff(400) < 6 * 20), "{positives:?}");
    // Row 0 is no negative of its own 20: 40 anchors have 41 candidates each, the lonely one has 60.
    let expected = 200.0 * 30.0 * (40.0 / 41.0 + 1.0 / 60.0);
    assert!(
        negatives[..60].iter().all(|n| (f64::from(*n) - expected).abs() < 6.0 * expected.sqrt()),
        "{negatives:?}"
    );
}

#[test]
fn momentum_encoders_follow_and_resume() {
    let online = Var::new(&[[1f32, -2.0]], &CPU).unwrap();
    let mut follower = MomentumEncoder::new(std::slice::from_ref(&online), 0.9).unwrap();
    online.set(&Tensor::new(&[[2f32, 4.0]], &CPU).unwrap()).unwrap();
    let expected = [[0.9f32 + 0.1 * 2.0, 0.9 * -2.0 + 0.1 * 4.0]];
    follower.step().unwrap();
    let got = follower.variables()[0].to_vec2::<f32>().unwrap();
    assert!((got[0][0] - expected[0][0]).abs() < 1e-6 && (got[0][1] - expected[0][1]).abs() < 1e-6);
    let state = follower.state().unwrap();
    follower.step().unwrap();
    follower.restore(&state).unwrap();
    assert_eq!(follower.variables()[0].to_vec2::<f32>().unwrap(), got);
    assert_eq!(online.to_vec2::<f32>().unwrap(), [[2.0, 4.0]]);
    assert!(MomentumEncoder::new(&[], 0.9).is_err());
    assert!(MomentumEncoder::new(std::slice::from_ref(&online), 1.5).is_err());
    assert!(follower.restore(&Default::default()).is_err());
}

fn refused<T>(result: consonance_methods::Result<T>, parts: &[&str]) {
    let message = result.err().map(|e| e.to_string()).unwrap_or_default();
    assert!(parts.iter().all(|part| message.contains(part)), "{message:?} lacks one of {parts:?}");
}

#[test]
fn bad_input_is_refused() {
    let config = MutualContrastConfig::default();
    let rows = |n: usize, d: usize, seed| matrix(&data::unit(n, d, seed), n, d);
    let labels = vector(&[0, 0, 1, 1]);
    for networks in [0, 1, 5] {
        refused(MutualBatch::new(config, networks), &["cohort", "2 to 4"]);
        refused(MutualQueue::new(config, networks, (8, 4, 3), &CPU), &["cohort", "2 to 4"]);
        refused(MutualBank::new(config, networks, (8, 3), 1, 0.5, 1, &CPU), &["cohort", "2 to 4"]);
    }
    let wrong = MutualContrastConfig { temperature: 0.0, ..config };
    refused(MutualBatch::new(wrong, 2), &["temperature"]);
    refused(MutualBatch::new(MutualContrastConfig { icl: -1.0, ..config }, 2), &["icl", "-1"]);
    refused(MutualBatch::new(MutualContrastConfig { softening: f64::NAN, ..config }, 2), &["softening"]);

    let batch = MutualBatch::new(config, 2).unwrap();
    let two = [rows(4, 3, 1), rows(4, 3, 2)];
    refused(batch.terms(&two[..1], &labels), &["cohort of 1"]);
    refused(batch.terms(&[two[0].clone(), two[1].clone(), rows(4, 3, 3)], &labels), &["cohort of 3"]);
    refused(batch.terms(&[two[0].clone(), rows(5, 3, 2)], &labels), &["(5, 3)", "(4, 3)"]);
    refused(batch.terms(&[two[0].clone(), rows(4, 2, 2)], &labels), &["(4, 2)"]);
    refused(batch.terms(&two, &vector(&[0, 1])), &["labels", "[4]"]);
    let nan = matrix(&[f32::NAN; 12], 4, 3);
    refused(batch.terms(&[two[0].clone(), nan.clone()], &labels), &["not finite"]);
    refused(batch.terms(&[two[0].to_dtype(candle_core::DType::F64).unwrap(), nan], &labels), &["F64"]);

    let mut bank = MutualBank::new(config, 2, (8, 3), 1, 0.5, 1, &CPU).unwrap();
    let lists =
        |columns: usize, row: u32| Tensor::full(row, (4, columns), &CPU).unwrap().contiguous().unwrap();
    refused(bank.terms(&two, &lists(9, 1)), &["lists", "9 columns", "to 8"]);
    refused(bank.terms(&two, &lists(2, 1)), &["lists", "2 columns"]);
    refused(bank.terms(&two, &lists(4, 8)), &["8"]);
    refused(bank.terms(&two, &vector(&[1, 2, 3, 4])), &["lists", "[4, columns]"]);
    refused(bank.terms(&[rows(4, 2, 1), rows(4, 2, 2)], &lists(4, 1)), &["dimension 2", "dimension 3"]);
    refused(bank.update(&two, &vector(&[0, 1, 2, 8])), &["8"]);
    refused(bank.restore(&Default::default()), &["bank.0", "missing"]);
    refused(MutualBank::new(config, 2, (8, 3), 0, 0.5, 1, &CPU), &["positives"]);
    refused(MutualBank::new(config, 2, (8, 3), 1, 1.5, 1, &CPU), &["momentum"]);
    refused(IndexLists::new(&labels, 0, 1, 1), &["positives"]);
    refused(IndexLists::new(&vector(&[3, 3]), 1, 1, 1), &["1 classes"]);
    refused(IndexLists::new(&labels, 1, 2, 1).unwrap().draw(&vector(&[4]), 0), &["rows", "0..4"]);

    let mut queue = MutualQueue::new(config, 2, (8, 4, 3), &CPU).unwrap();
    refused(queue.terms(&two, &two[..1]), &["keys"]);
    refused(queue.terms(&two, &[rows(3, 3, 1), rows(3, 3, 2)]), &["keys", "(3, 3)"]);
    let small = [rows(3, 3, 1), rows(3, 3, 2)];
    refused(queue.terms(&small, &small), &["[4, 3]"]);
    assert_eq!(queue.filled(), 0, "a refused batch is not in the queue");
    refused(queue.restore(&Default::default()), &["missing"]);
    refused(MutualQueue::new(config, 2, (0, 4, 3), &CPU), &["length"]);
    refused(logit_distillation(&two[..1], &LogitDistillation::default()), &["cohort of 1"]);
}
