"""The commonest function words of each language that shares its script with others, script by script.

Data for `languages.py`; it must not know how the words are used. Invariant: words are in lower case.
"""

from collections.abc import Mapping

FUNCTION_WORDS: Mapping[str, Mapping[str, str]] = {
    "LATIN": {
        "cs": """
            a se v na je že to s z do o i jsem jsou byl byla bylo jako ale po za které který která od pro by tak ve
            k jeho jsme když není už nebo podle ještě při také může toho
        """,
        "da": """
            og i at det er en til af på som der med for ikke de den har et var jeg men han fra om kan vi blev efter
            være ved også hun sig skal nu du havde mig hvad eller dig kun uden dette denne bliver meget nogle hvor
            når alle samme anden mange selv dag bedre ud
        """,
        "de": """
            der die und in den von zu das mit sich des auf für ist im dem nicht ein eine als auch es an werden aus
            er hat dass sie nach wird bei einer um am sind noch wie einem über so ich zum war haben nur oder aber
            vor wir
        """,
        "en": """
            the of and to in is that for it as was with be by on not he his but at are this have from or had an they
            which you were all her she there would their we him been has when who will no more if out so what up its
            about into than them can only
        """,
        "es": """
            de la que el en y los se del las un por con no una su para es al lo como más pero sus le ya o este sí
            porque esta entre cuando muy sin sobre también me hasta hay donde quien desde todo nos
        """,
        "fi": """
            ja on ei se että oli hän mutta ovat kuin joka myös niin sen ole tai jos kun voi ollut vain hänen olla
            mitä nyt sitä tämä siitä vielä minä kanssa jälkeen tämän sekä en
        """,
        "fr": """
            de la le et les des en un du une que est pour qui dans a par plus pas au sur ne se ce il sont ont avec
            mais comme on elle sa son ses cette aux été nous vous leur ou où je être même aussi
        """,
        "hu": """
            a az és hogy nem is egy ez volt csak van de meg már ha azt még mint el fel kell vagy amely aki minden
            ezt lehet után szerint nagyon ki olyan mert majd lesz között első
        """,
        "id": """
            yang dan di dengan untuk dari dalam itu ini pada tidak akan adalah ke mereka sebagai oleh juga karena
            ada bisa tersebut telah saya atau kita dia seperti kami lebih sudah harus dapat bahwa
        """,
        "it": """
            di e che la il un a per è in una non sono da con del si le dei come anche più ha i al alla della nel lo
            ma gli questo o se essere sua suo nella hanno ci delle quando era molto dal così
        """,
        "nl": """
            de en van het een in is dat op te zijn voor met die niet aan er om ook als maar bij dan hij ze wordt
            naar uit door over nog heeft wel deze had geen we kan werd was ik je waar meer
        """,
        "no": """
            og i det er på som en til for å av med ikke den de at har var et jeg han om fra men seg ble kan vi så
            ved etter være skal også hun eller nå du meg hva mot deg bare uten dette denne blir noe noen hvor når
            alle samme annen mange selv mye enn fikk da
        """,
        "pl": """
            w i na z się do nie że to jest o jak po za od przez co ale dla jego ich tym przy tylko był być są może
            już jej tego oraz było tak czy jako który która które także ma
        """,
        "pt": """
            de a o que e do da em um para é com não uma os no se na por mais as dos como mas foi ao ele das tem à
            seu sua ou ser quando muito há nos já está eu também só pelo pela até isso ela entre
        """,
        "ro": """
            de și în a la cu pe care din un nu să o este mai pentru că se au sunt fi al ale lui prin sau dar fost
            cel ca acest după despre între când foarte am ne unei
        """,
        "sv": """
            och i att det som en på är av för med den till inte har de ett om han men var jag sig från vi så kan när
            år under också efter eller nu där hon skulle blev vid ska dig bara utan detta denna blir mycket några
            alla samma andra många själv två måste finns
        """,
        "tr": """
            ve bir bu için ile da de olarak daha olan çok o en gibi sonra kadar ne her ama değil var mi ben ise oldu
            olduğu ya göre şey veya iki zaman ki yok diye ancak
        """,
        "vi": """
            và của là có trong được không cho một các với người này để những đã khi từ đến về ở như ra cũng vào trên
            nhiều năm thì phải sẽ còn nhưng đó theo hay rất tôi
        """,
    },
    "CYRILLIC": {
        "bg": """
            и на да за се от в е не с по че са като до това ще но си към при или те той беше има след така само
            който която може още във му един много със бъде което този тази моля бъдат всички няма ли аз ние бе бяха
            тя них чрез без
        """,
        "ru": """
            и в не на что я с он как это по но из у за от так же к все она был было для мы бы о вы только его при
            или если уже когда они ещё этого может также до быть их чтобы этот эта эти нет вас вам наш всех чем где
            под без после очень
        """,
        "uk": """
            і в на не що з до це як та він за від у для але й про є які вона його був по ми так або бути було щоб їх
            при також може якщо вже ще коли все ж цього цей ця ці немає вас вам наш всі всіх чим де під без після
            дуже лише
        """,
    },
    "ARABIC": {
        "ar": """
            في من على إلى أن هذا التي عن مع ما لا هو الذي هذه كان بين كل أو بعد قد لم ذلك وقد ولا كما هي إن قبل وهو
            حيث عند كانت هناك يكون يجب هل أي لأن غير عليه فيه منها ليس أنه لها له بعض حتى تم عام خلال نحن أنا
        """,
        "fa": """
            و در به از که این را با است برای آن یک خود تا بر هم نیز شود شده ما می اما یا بود دارد باید هر او آنها
            کرد من چه شد کند
        """,
        "ur": """
            کے میں کی ہے اور سے کا کو اس کہ نے ہیں پر یہ بھی کر ایک نہیں وہ جو تھا گیا ہو لیے تو ہی تھے ان یا کیا جا
            تھی ہم
        """,
    },
    "DEVANAGARI": {
        "hi": """
            के में की है और से का को यह पर कि ने हैं एक भी नहीं इस कर लिए था हो तो वह जो ही गया या अपने साथ थे तक
            कुछ हम आप मैं करने करना होता होती रहा रहे क्या कोई किसी जब बाद सकते सकता उस उन द्वारा कृपया
        """,
        "mr": """
            आणि आहे या व ते हे की तो ही आहेत होते होता मध्ये नाही साठी एक केले असे तर जे काही त्या होती पण करून
            त्याच्या हा असा आपण मी तुम्ही त्यांनी करा करणे असणे आपल्या कृपया नाहीत सर्व किंवा असल्यास म्हणून येथे
            त्यांच्या
        """,
    },
}
