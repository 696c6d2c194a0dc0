//! Video-speech contrast.

use candle_core::{Device, Tensor, Var};
use consonance_methods::{
    OrderConfig, OrderHead, PairAdmission, PairAffinity, SampleWeights, VideoSpeech, VideoSpeechBatch,
    VideoSpeechConfig, VideoSpeechForm,
};
use consonance_testkit::data;

use crate::golden::{Golden, flat};
use crate::support::{matrix, number, vector};

const CPU: Device = Device::Cpu;

#[test]
fn losses_agree_with_pytorch() {
    for mut case in Golden::read("video_speech").cases("pairs/") {
        let v = case.variables("v");
        let epoch = case.take("epoch").as_f64().unwrap();
        let method = VideoSpeech::new(case.config()).unwrap();
        let (scans, times) = (case.input("scans"), case.input("times"));
        let batch = VideoSpeechBatch { video: &v[0], speech: &v[1], scans: &scans, times: &times, epoch };
        let terms = method.terms(&batch, None).unwrap();
        case.check_loss(&terms.total, &v);
    }
}

#[test]
fn order_prediction_agrees_with_pytorch() {
    for case in Golden::read("video_speech").cases("order/") {
        let x = case.variables("x").remove(0);
        let orders = case.input("orders");
        let head = OrderHead::new(case.config(), x.dims()[2], 1, &CPU).unwrap();
        for (variable, weight) in head.variables().iter().zip(case.inputs("w")) {
            variable.set(&weight).unwrap();
        }
        let loss = head.loss(&head.shuffle(&x, &orders).unwrap(), &orders).unwrap();
        let variables: Vec<Var> = std::iter::once(x).chain(head.variables().iter().cloned()).collect();
        case.check_loss(&loss, &variables);
    }
}

#[test]
fn the_pace_grows_to_one_and_admits_easy_negatives_first() {
    let config = VideoSpeechConfig::default();
    let paces = [0.0, 5.0, 10.0, 50.0].map(|epoch| config.pace(epoch));
    assert!((paces[0] - 0.2).abs() < 1e-12 && (paces[1] - 0.6).abs() < 1e-12);
    assert_eq!(paces[2..], [1.0, 1.0]);
    assert_eq!(VideoSpeechConfig { pace_epochs: 0.0, ..config }.pace(0.0), 1.0);
    // Pair 1 is near pair 0 in time, pair 2 is far away in the same scan, pair 3 is another scan.
    let v = matrix(&data::unit(4, 6, 1), 4, 6);
    let (scans, times) = (vector(&[0, 0, 0, 1]), Tensor::new(&[0f32, 0.5, 4.0, 0.0], &CPU).unwrap());
    let form = VideoSpeechForm::Softmax { temperature: 1.0, symmetric: false };
    let loss = |epoch: f64, speech: &Tensor| {
        let config = VideoSpeechConfig { admission: PairAdmission::Hard, form, ..config };
        let batch = VideoSpeechBatch { video: &v, speech, scans: &scans, times: &times, epoch };
        number(&VideoSpeech::new(config).unwrap().terms(&batch, None).unwrap().total)
    };
    // a_01 = e^-0.5 = 0.61 is admitted at epoch 6 (pace 0.68) and not at 0; a_02 = e^-4 from the start.
    let s = matrix(&data::unit(4, 6, 2), 4, 6);
    assert!(loss(6.0, &s) > loss(0.0, &s));
    assert_eq!(loss(6.0, &s), loss(9.0, &s));
}

#[test]
fn orders_are_all_there_and_drawn_evenly() {
    let head = OrderHead::new(OrderConfig { parts: 4, hidden: 3 }, 2, 5, &CPU).unwrap();
    let mut orders = head.orders().to_vec();
    assert_eq!((orders.len(), &orders[0][..], &orders[23][..]), (24, &[0, 1, 2, 3][..], &[3, 2, 1, 0][..]));
    orders.dedup();
    assert_eq!(orders.len(), 24);
    let mut counts = [0u32; 24];
    for step in 0..100 {
        let drawn = head.draw(48, step).unwrap().to_vec1::<u32>().unwrap();
        assert_eq!(drawn, head.draw(48, step).unwrap().to_vec1::<u32>().unwrap());
        drawn.iter().for_each(|order| counts[*order as usize] += 1);
    }
    // 4,800 draws of 24: 200 each, deviation below 14.2.
    assert!(counts.iter().all(|n| n.abs_diff(200) < 6 * 15), "{counts:?}");
    let x = Tensor::arange(0f32, 8.0, &CPU).unwrap().reshape((1, 4, 2)).unwrap();
    let shuffled = head.shuffle(&x, &vector(&[23])).unwrap();
    assert_eq!(flat(&shuffled), [6.0, 7.0, 4.0, 5.0, 2.0, 3.0, 0.0, 1.0]);
}

fn refused<T>(result: consonance_methods::Result<T>, parts: &[&str]) {
    let message = result.err().map(|e| e.to_string()).unwrap_or_default();
    assert!(parts.iter().all(|part| message.contains(part)), "{message:?} lacks one of {parts:?}");
}

#[test]
fn bad_input_is_refused() {
    let config = VideoSpeechConfig::default();
    assert!(serde_json::from_str::<VideoSpeechConfig>(r#"{"pace_begin":0.1}"#).is_err());
    let json = serde_json::to_string(&config).unwrap();
    assert_eq!(serde_json::from_str::<VideoSpeechConfig>(&json).unwrap(), config);
    for (wrong, name) in [
        (VideoSpeechConfig { pace_start: 0.0, ..config }, "pace_start"),
        (VideoSpeechConfig { pace_start: 1.1, ..config }, "pace_start"),
        (VideoSpeechConfig { pace_epochs: f64::NAN, ..config }, "pace_epochs"),
        (VideoSpeechConfig { affinity: PairAffinity::Time { scale: 0.0 }, ..config }, "scale"),
        (VideoSpeechConfig { form: VideoSpeechForm::Margin { margin: -1.0 }, ..config }, "margin"),
        (VideoSpeechConfig { samples: SampleWeights::Hard { limit: 0.0, growth: 1.1 }, ..config }, "limit"),
        (
            VideoSpeechConfig { samples: SampleWeights::Linear { limit: 1.0, growth: 0.0 }, ..config },
            "growth",
        ),
    ] {
        refused(VideoSpeech::new(wrong), &[name]);
    }
    let method = VideoSpeech::new(config).unwrap();
    let rows = |n: usize, d: usize| matrix(&data::unit(n, d, 3), n, d);
    let (v, scans, times) = (rows(3, 4), vector(&[0, 0, 1]), Tensor::new(&[0f32, 1.0, 2.0], &CPU).unwrap());
    let batch = VideoSpeechBatch { video: &v, speech: &v, scans: &scans, times: &times, epoch: 0.0 };
    let other = rows(2, 4);
    refused(
        method.terms(&VideoSpeechBatch { speech: &other, ..batch }, None),
        &["speech", "(2, 4)", "(3, 4)"],
    );
    refused(method.terms(&VideoSpeechBatch { epoch: -1.0, ..batch }, None), &["epoch"]);
    let nan = Tensor::new(&[0f32, f32::NAN, 2.0], &CPU).unwrap();
    refused(method.terms(&VideoSpeechBatch { times: &nan, ..batch }, None), &["times", "NaN"]);
    refused(method.terms(&VideoSpeechBatch { scans: &vector(&[0]), ..batch }, None), &["scans", "[3]"]);
    refused(method.terms(&batch, Some(&times)), &["order", "scalar"]);
    let one = rows(1, 4);
    let single = VideoSpeechBatch {
        video: &one,
        speech: &one,
        scans: &vector(&[0]),
        times: &Tensor::new(&[0f32], &CPU).unwrap(),
        epoch: 0.0,
    };
    refused(method.terms(&single, None), &["single pair"]);

    for parts in [1, 6] {
        refused(OrderHead::new(OrderConfig { parts, hidden: 4 }, 2, 1, &CPU), &["parts", "2 to 5"]);
    }
    let head = OrderHead::new(OrderConfig::default(), 2, 1, &CPU).unwrap();
    let clips = |n: usize, parts: usize| rows(n * parts, 2).reshape((n, parts, 2)).unwrap();
    refused(head.loss(&clips(2, 4), &vector(&[0, 1])), &["features", "[2, 4, 2]", "[B, 3, 2]"]);
    refused(head.loss(&clips(2, 3), &vector(&[0, 6])), &["orders", "6", "0..6"]);
    refused(head.shuffle(&clips(2, 3), &vector(&[0])), &["orders", "[2]"]);
}
